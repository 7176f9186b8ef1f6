"""Shared beginnings: vLLM's cache read without a trace, groups of prompts, looks in turn."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engineless import BLOCK, FakeEngine, make_request
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyEngine
from toy_engine import make_request as toy_request

from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.serving.engine.core_status import core_status
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.requests.prefixes import PLACES

SHARED = list(range(5, 5 + 10 * BLOCK))


@pytest.fixture
def engine(tiny_dir):
    def build(**settings):
        options = {"policy": "fcfs", "plan_share": 1.0, "refit_steps": 0} | settings
        return FakeEngine(tiny_dir, options, max_num_seqs=2, blocks=200, prefix_caching=True)

    return build


def picture(fake):
    found = fake.scheduler.core.snapshots.take(Running([], [], []), time.monotonic()).build()
    return found.waiting_ids, found.problem.waiting


def trace(manager):
    """What a lookup may not change: order of eviction, references, statistics."""
    pool = manager.block_pool
    free = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
    return free, [block.ref_cnt for block in pool.blocks], repr(manager.prefix_cache_stats)


def test_the_view_finds_what_vllm_would_and_leaves_no_trace(engine):
    fake = engine()
    fake.add(make_request("first", prompt=SHARED), output_tokens=3)
    fake.run()
    manager = fake.scheduler.kv_cache_manager
    for shared_blocks in (0, 1, 2, 7, 10):
        for own in (1, BLOCK - 1, BLOCK, 3 * BLOCK + 5):
            prompt = SHARED[: shared_blocks * BLOCK] + [300 + i for i in range(own)]
            request = make_request("second", prompt=prompt)
            before = trace(manager)
            tokens = fake.scheduler._prefix_cache.cached_tokens(request)
            assert trace(manager) == before
            assert tokens == shared_blocks * BLOCK
            hit = manager.coordinator.find_longest_cache_hit(
                request.block_hashes, request.num_tokens - 1
            )
            assert tokens == hit[1]
    whole = make_request("again", prompt=SHARED)  # its last token must be computed all the same
    assert fake.scheduler._prefix_cache.cached_tokens(whole) == 9 * BLOCK


def test_waiting_prompts_are_planned_net_of_what_is_cached(engine):
    fake = engine()
    fake.add(make_request("first", prompt=SHARED), output_tokens=3)
    fake.run()
    for name in ("long", "other"):
        fake.add(make_request(name, prompt=[900 + len(name)] * 40), output_tokens=60)
    fake.step()
    fake.add(make_request("warm", prompt=[*SHARED, *range(400, 450)]), output_tokens=3)
    fake.add(make_request("cold", prompt=list(range(600, 700))), output_tokens=3)
    fake.step()
    ids, waiting = picture(fake)
    assert ids == ["warm", "cold"]
    assert waiting.cached_tokens.tolist() == [160, 0]
    assert waiting.prefill_left_tokens.tolist() == [50, 100]
    assert waiting.prompt_tokens.tolist() == [210, 100]
    fake.run()
    assert len(fake.finished) == 5
    assert fake.scheduler.lengthwise_status()["plan"]["fallbacks"].get("step") is None


def test_waiting_prompts_that_begin_alike_share_an_id(engine):
    fake = engine()
    for name in ("a", "b"):
        fake.add(make_request(name, prompt=[900 + ord(name)] * 40), output_tokens=60)
    fake.step()
    for index in range(3):
        own = [1000 + 50 * index + i for i in range(50)]
        fake.add(make_request(f"shared{index}", prompt=[*SHARED, *own]))
    fake.add(make_request("alone", prompt=list(range(600, 700))))
    _, waiting = picture(fake)
    assert waiting.prefix_tokens.tolist() == [160, 160, 160, 0]
    assert len(set(waiting.prefix_id[:3].tolist())) == 1
    assert waiting.prefix_id[3] == NO_PREFIX
    fake.run()
    assert core_status(fake.scheduler.core, time.monotonic())["tracked"] == 0


def test_without_a_prefix_cache_nobody_asks(tiny_dir):
    fake = FakeEngine(tiny_dir)
    assert not fake.scheduler._prefix_cache.usable
    fake.add(make_request("a"), output_tokens=3)
    fake.run()
    assert fake.scheduler.lengthwise_status()["plan"]["fallbacks"] == {"no-prediction": 1}


# -- without vLLM -----------------------------------------------------------------------------


def caching(cached, slots=1):
    return ToyEngine({"policy": "fcfs", "refit_steps": 0}, slots=slots, cached_tokens=cached)


def test_newcomers_are_looked_at_first_and_everybody_in_turn():
    looked = []

    def cached(name):
        looked.append(name)
        return 0

    engine = caching(cached)
    for i in range(21):
        engine.add(toy_request(f"r{i}", pred_quantiles=[5.0] * 12), 1000)
    for _ in range(3):
        engine.step()
    assert set(looked[:20]) == {f"r{i}" for i in range(1, 21)}
    before = len(looked)
    assert before > 20
    engine.add(toy_request("new", pred_quantiles=[5.0] * 12), 1000)
    engine.step()
    assert looked[before] == "new"
    assert len(looked) == before + 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 1), max_size=9)), max_size=14))
def test_groups_are_of_equal_beginnings_and_forget_those_who_ended(steps):
    engine = caching(lambda name: 0, slots=1)
    core, alive = engine.core, {}
    for number, (ends, blocks) in enumerate(steps):
        if ends and alive:
            name = next(iter(alive))
            del alive[name]
            core.ended(name, "aborted", 0, 0.0, 0.0)
            continue
        name = f"r{number}"
        hashes = [tuple(blocks[: place + 1]) for place in range(len(blocks))]
        alive[name] = hashes
        engine.add(toy_request(name, pred_quantiles=[5.0] * 12, blocks=hashes))
    if alive:
        names = list(alive)
        rows = core.table.arrays(core.table.rows(names))
        for one, name in enumerate(names):
            for other, partner in enumerate(names):
                if one < other and rows.prefix_id[one] == rows.prefix_id[other] != NO_PREFIX:
                    tokens = rows.prefix_tokens[one]
                    assert tokens == rows.prefix_tokens[other]
                    shared = int(tokens) // 16
                    assert alive[name][:shared] == alive[partner][:shared]
        assert (np.isin(rows.prefix_tokens // 16, [0, *PLACES])).all()
    for name in list(alive):
        core.ended(name, "aborted", 0, 0.0, 0.0)
    assert core._groups._groups == {}
    assert core._groups._hashes == {}


def test_those_to_be_looked_at_are_no_more_than_twice_those_who_wait():
    """However many come and go before anybody looks."""
    engine = ToyEngine({"policy": "fcfs"}, slots=1, cached_tokens=lambda name: 0)
    looks = engine.core._looks
    for i in range(500):
        engine.add(toy_request(f"r{i}"))
        if i % 50:
            engine.queue.remove_request(engine.requests[f"r{i}"])
    assert len(engine.queue) == 10
    assert len(looks._line) <= 2 * 11 + 8
    assert {f"r{i}" for i in range(0, 500, 50)} <= set(looks._line)
