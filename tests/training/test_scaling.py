"""Workloads asked of engines of other orders, and the recipe they follow."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lengthwise.data.arena.workloads import ARENA, GpuScale
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.profile import EngineProfile, Speculation, load_profile, profile_names
from lengthwise.training.bench.comparison.scaling import full_batch_token_s, scale_to_engine
from lengthwise.training.bench.comparison.workload_source import (
    capacity_rps,
    length_rows,
    open_workload,
    to_sim,
)

SHAPE = "shape-slow-steps"


def drawn(name: str, profile: EngineProfile | None, n: int = 60) -> list[WorkloadRequest]:
    return open_workload(name, source="synthetic", profile=profile).draw(n, 5.0, 3)


def test_a_full_batch_is_as_the_recipe_says():
    # 320 slots bind before 600,000 / 700; KV binds at 40,000 / 700 = 57.14 sequences
    assert full_batch_token_s(load_profile(SHAPE)) == pytest.approx(
        0.028 + 0.0001 * 320 + 1.5e-8 * 700 * 320
    )
    assert full_batch_token_s(load_profile("shape-little-memory")) == pytest.approx(
        0.016 + 0.00012 * 40_000 / 700 + 3e-8 * 40_000
    )
    drafting = replace(load_profile(SHAPE), speculation=Speculation(2.0))
    assert full_batch_token_s(drafting) == pytest.approx(
        full_batch_token_s(load_profile(SHAPE)) / 2
    )


@pytest.mark.parametrize(
    ("name", "prompts", "full_steps", "patience"),
    [
        ("mixed", 3, 1.8, 1.0),
        ("tight", 3, 1.3, 1.0),
        ("paper", 3, 1.5, 1.0),
        ("mixed-long", 10, 1.8, 1.5),
        ("documents", 1, 1.8, 1.0),
        ("agents", 1, 1.8, 1.0),
    ],
)
def test_prompts_and_objectives_take_the_order_of_the_engine(name, prompts, full_steps, patience):
    shape = load_profile(SHAPE)
    stretch = patience * (0.028 / 0.012) ** 0.5
    for plain, scaled in zip(drawn(name, None), drawn(name, shape), strict=True):
        assert scaled.prompt_tokens == prompts * plain.prompt_tokens
        assert (scaled.output_tokens, scaled.arrival_s) == (plain.output_tokens, plain.arrival_s)
        assert scaled.prompt == plain.prompt
        assert (scaled.text_tokens or scaled.prompt_tokens) == (
            plain.text_tokens or plain.prompt_tokens
        )
        for objective in ("ttft_s", "e2e_s"):
            before, after = (getattr(r.slo, objective) for r in (plain, scaled))
            assert after == (None if before is None else pytest.approx(before * stretch))
        if plain.slo.tpot_s is None:
            assert scaled.slo.tpot_s is None
        else:
            assert scaled.slo.tpot_s == pytest.approx(full_steps * full_batch_token_s(shape))


@pytest.mark.parametrize("name", ARENA)
def test_a_fixed_profile_leaves_the_workload_as_it_stands(name):
    assert drawn(name, load_profile("tiny-cpu")) == drawn(name, None)


def test_a_fast_engine_grants_no_less_time():
    request = WorkloadRequest(0.0, 10, 5, Slo(e2e_s=4.0))
    (scaled,) = scale_to_engine([request], GpuScale(), load_profile("shape-few-slots"))
    assert scaled.slo.e2e_s == 4.0


@pytest.mark.parametrize("profile", [p for p in profile_names() if p != "tiny-cpu"])
@pytest.mark.parametrize("name", ["agents", "documents"])
def test_every_shape_can_hold_the_long_prompts(profile, name):
    shape = load_profile(profile)
    requests = drawn(name, shape, 300)
    longest = max(r.prompt_tokens + r.output_tokens for r in requests)
    assert longest < shape.capacity.kv_tokens / 2
    assert capacity_rps(open_workload(name, source="synthetic", profile=shape), shape) > 0.1


def test_the_simulator_is_told_who_shares_a_beginning():
    requests = drawn("agents", None, 50)
    workload = to_sim(requests)
    for i, request in enumerate(requests):
        assert workload.prefix_tokens[i] == request.prefix_tokens
        same = workload.prefix_id == workload.prefix_id[i]
        assert Counter(np.array([r.prefix for r in requests])[same]) == {request.prefix: same.sum()}
    assert to_sim(drawn("mixed", None)).prefix_id is None
    alone = replace(requests[0], prefix=None, prefix_tokens=None, arrival_s=0.0)
    assert to_sim([alone, *requests]).prefix_id[0] == NO_PREFIX


def test_the_predictor_is_asked_about_the_text_it_can_read():
    class Asked:
        levels = (0.5,)

        def predict(self, prompts, classes, tokens):
            self.tokens = tokens
            return type("Lengths", (), {"quantiles": np.ones((len(prompts), 1))})

    asked = Asked()
    length_rows(drawn("mixed", load_profile(SHAPE)), "learned", asked)
    assert asked.tokens == [r.prompt_tokens for r in drawn("mixed", None)]


def test_a_profile_keeps_its_parts(tmp_path):
    path = tmp_path / "p.json"
    profile = replace(load_profile("holdout-moe"), name="p")
    path.write_text(profile.to_json())
    assert load_profile(path) == profile
    values = json.loads(path.read_text())
    for name in ("prefix_cache", "speculation", "scale"):  # a file from before there were any
        del values[name]
    path.write_text(json.dumps(values))
    old = load_profile(path)
    assert (old.prefix_cache, old.speculation, old.scale) == (None, None, "fixed")
    path.write_text(json.dumps(values | {"prefix_cache": True}))
    assert load_profile(path).prefix_cache.block_tokens == 16
    path.write_text(json.dumps(values | {"prefix_cache": False}))
    assert load_profile(path).prefix_cache is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"prefix_cache": {"block_tokens": 0}}, "block_tokens must be a whole number from 1"),
        ({"prefix_cache": {"blocks": 16}}, "PrefixCache has no 'blocks'; it has block_tokens"),
        ({"prefix_cache": 16}, "PrefixCache must be an object, true, false or null, got 16"),
        ({"speculation": True}, "Speculation lacks accepted_tokens"),
        ({"speculation": {"accepted_tokens": 0.5}}, "accepted_tokens must lie from 1 to 64: 0.5"),
        ({"speculation": {"accepted_tokens": "2"}}, "accepted_tokens must be a number, got '2'"),
        ({"speculation": {"accepted_tokens": 2.4, "draft_tokens": 1}}, "whole number from 2"),
        ({"scale": "big"}, "scale must be one of fixed, gpu, got 'big'"),
    ],
)
def test_a_bad_part_is_named(tmp_path, part, message):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(json.loads(load_profile("tiny-cpu").to_json()) | part))
    with pytest.raises(ValueError, match=message):
        load_profile(path)
