"""The engine's kernel against its readable twin, and what prefix cache and speculation bring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_engine import CompiledEngine, NaiveEngine
from planning_cases import MODEL, draw_problem, draw_workload

from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import NO_PREFIX, Capacity
from lengthwise.scheduler.profile import EngineProfile, PrefixCache, Speculation
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator import prefix_cache as pc
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

PLAIN = EngineProfile("plain", MODEL, Capacity(6, 3_000, 128), "test")
CACHED = replace(PLAIN, prefix_cache=PrefixCache(16))
DRAFTING = replace(PLAIN, speculation=Speculation(2.5))


def shared_workload(
    seed: int, n: int, prefixes: int, rate_rps: float = 80.0, longest: int = 400
) -> SimWorkload:
    """Requests of which most begin with one of a few prefixes, not always equally long."""
    rng = np.random.default_rng(seed)
    workload = draw_workload(seed, n, rate_rps)
    ids = rng.integers(-1, prefixes, n)
    lengths = rng.integers(1, longest, max(prefixes, 1))
    tokens = np.where(ids >= 0, lengths[np.maximum(ids, 0)], 0)
    shorter = rng.random(n) < 0.1
    tokens = np.where(shorter, tokens // 2, tokens)
    ids = np.where(tokens > 0, ids, NO_PREFIX)
    own = rng.integers(0, 60, n)
    prompts = np.maximum(tokens + own, 1)
    return replace(workload, prompt_tokens=prompts, prefix_id=ids, prefix_tokens=tokens)


def one_after_another(count: int, prefix_tokens: int, prompt_tokens: int) -> SimWorkload:
    """Requests of the same prefix, each arriving when those before it are gone."""
    base = draw_workload(0, count)
    return replace(
        base,
        arrival_s=np.arange(count) * 10.0,
        prompt_tokens=np.full(count, prompt_tokens),
        output_tokens=np.full(count, 4),
        prefix_id=np.zeros(count, dtype=np.int64),
        prefix_tokens=np.full(count, prefix_tokens),
    )


def fcfs(workload: SimWorkload, profile: EngineProfile):
    return simulate(workload, make_policy("fcfs"), profile)


@given(
    seed=st.integers(0, 2_000),
    n=st.integers(1, 25),
    prefixes=st.integers(0, 4),
    block=st.sampled_from([0, 1, 16]),
    accepted=st.sampled_from([None, 1.0, 1.7, 3.0]),
    kv=st.sampled_from([700, 1_200, 6_000]),
    limit=st.sampled_from([None, 0, 40]),
    take_back=st.integers(0, 2),
    eager=st.sampled_from([(0.0, 0.0), (0.03, 24.0), (0.1, 0.0)]),
    period=st.sampled_from([1, 1, 2, 6]),
    patience_s=st.sampled_from([np.inf, 0.0, 0.1, 0.5]),
)
def test_the_kernel_is_its_readable_twin(
    seed, n, prefixes, block, accepted, kv, limit, take_back, eager, period, patience_s
):
    profile = replace(
        PLAIN,
        step_time=replace(PLAIN.step_time, eager_s=eager[0], graph_tokens=eager[1]),
        capacity=Capacity(6, kv, 128),
        prefix_cache=PrefixCache(block) if block else None,
        speculation=None if accepted is None else Speculation(accepted),
    )
    workload = shared_workload(seed, n, prefixes)
    kinds = (NaiveEngine, CompiledEngine)
    naive, compiled = (kind(workload, profile, limit, period) for kind in kinds)
    for row, at_s in enumerate([*workload.arrival_s, np.inf]):
        for engine in (naive, compiled):
            engine.run_until(at_s)
            if take_back and row % 3 == 2 and np.isfinite(at_s):
                engine.take_back(take_back)
            if row < n:
                engine.arrive(row, at_s)
        if row < n and row % 2:
            latest_start_s = at_s + patience_s
            naive.requests[row].latest_start_s = compiled.latest_start_s[row] = latest_start_s
        if block:
            waiting = compiled.queue[: compiled.counts[1]]
            found = pc.cached_tokens(compiled.cache, waiting, compiled.state[waiting, e.LEFT])
            assert list(found) == [sum(naive.found(r)) for r in naive.queue]
    assert compiled.times[:, e.FINISH] == pytest.approx(naive.finish_s())
    assert compiled.clock[e.PREFILLED] == naive.prefilled
    assert compiled.clock[e.CACHED] == naive.cached
    assert compiled.clock[e.PREEMPTIONS] == naive.preemptions
    if block:  # all memory is free again, none lost and none twice
        head, tail, taken = compiled.cache.marks
        assert compiled.cache.tokens[head:tail].sum() - taken == kv
        assert not compiled.cache.users.any()


@given(
    seed=st.integers(0, 500),
    prefixes=st.integers(0, 3),
    kv=st.sampled_from([1_000, 4_000]),
    name=st.sampled_from(["fcfs", "feasible-edf", "sa"]),
)
def test_everybody_is_served_whatever_the_cache_does(seed, prefixes, kv, name):
    profile = replace(CACHED, capacity=Capacity(6, kv, 128), speculation=Speculation(1.6))
    workload = shared_workload(seed, 30, prefixes)
    policy = make_policy(name, **({"iterations": 20} if name == "sa" else {}))
    result = simulate(workload, policy, profile)
    assert (result.output_tokens == workload.output_tokens).all()
    assert np.isfinite(result.finish_s).all()
    assert result.kv_peak_tokens <= kv
    assert result.prefilled_tokens + result.cached_tokens >= workload.prompt_tokens.sum()
    if not result.preemptions + result.yields:
        assert result.prefilled_tokens + result.cached_tokens == workload.prompt_tokens.sum()


def test_a_shared_beginning_is_computed_once():
    workload = one_after_another(5, prefix_tokens=100, prompt_tokens=120)
    result = fcfs(workload, CACHED)
    assert result.prefilled_tokens == 120 + 4 * (120 - 96)  # 96: whole blocks of 16
    assert result.cached_tokens == 4 * 96
    ttft = result.ttft_s(workload)
    assert ttft[0] == pytest.approx(MODEL.step_s(120, 0, 0))
    assert ttft[1:] == pytest.approx(MODEL.step_s(24, 0, 0))
    assert fcfs(workload, PLAIN).prefilled_tokens == 5 * 120


def test_a_prompt_that_is_all_prefix_computes_its_last_block():
    result = fcfs(one_after_another(3, prefix_tokens=96, prompt_tokens=96), CACHED)
    assert result.prefilled_tokens == 96 + 2 * 16


def test_memory_holds_a_beginning_once():
    # 4 at once of 600 + 40 tokens do not fit into 1,100, but do with the beginning shared
    workload = replace(
        one_after_another(4, prefix_tokens=600, prompt_tokens=640), arrival_s=np.zeros(4)
    )
    tight = replace(CACHED, capacity=Capacity(6, 1_100, 1_024))
    result = fcfs(workload, tight)
    assert result.preemptions == 0
    assert result.kv_peak_tokens == 592 + 4 * (48 + 3)
    assert len(set(result.finish_s)) == 1
    assert len(set(fcfs(workload, replace(tight, prefix_cache=None)).finish_s)) == 4


def test_what_was_not_used_for_longest_goes_first():
    # memory for two of three beginnings beside what a request has of its own
    base = one_after_another(6, prefix_tokens=320, prompt_tokens=330)
    profile = replace(CACHED, capacity=Capacity(6, 660, 1_024))
    for order, hits in (([0, 1, 0, 1, 0, 1], 4), ([0, 1, 2, 0, 1, 2], 0), ([0, 1, 0, 2, 0, 1], 2)):
        result = fcfs(replace(base, prefix_id=np.array(order)), profile)
        assert result.cached_tokens == hits * 320, order


def test_who_lost_a_slot_finds_its_own_tokens_again():
    workload = replace(one_after_another(2, 32, 200), output_tokens=np.array([50, 50]))
    roomy = CompiledEngine(workload, CACHED)
    roomy.arrive(0, 0.0)
    roomy.run_until(0.05)
    had = int(roomy.state[0, e.COMPUTED])
    roomy.take_back(1)
    found = pc.cached_tokens(roomy.cache, np.array([0]), roomy.state[[0], e.LEFT])
    assert found[0] == had // 16 * 16
    roomy.run_until(np.inf)
    assert roomy.clock[e.PREFILLED] == 200 + (had + 1) - found[0]


def test_what_a_plan_is_told_of_the_cache():
    seen = []

    class Watching:
        name, nominal_s = "watching", 1e-6

        def __call__(self, problem):
            seen.append(problem)
            return make_policy("fcfs")(problem)

    workload = replace(
        one_after_another(8, prefix_tokens=100, prompt_tokens=120),
        arrival_s=np.array([0.0, *[0.001] * 7]),
        output_tokens=np.full(8, 40),
    )
    simulate(workload, Watching(), replace(CACHED, capacity=Capacity(2, 3_000, 512)))
    last = seen[-1]
    assert (last.tokens_per_step, last.decode_budget_tokens) == (1.0, 1)
    assert (last.waiting.cached_tokens == 96).all()
    assert (last.waiting.prefill_left_tokens == 24).all()
    assert (last.waiting.prompt_tokens == 120).all()
    assert (last.running.cached_tokens == 96).all()
    assert (last.waiting.prefix_tokens == 96).all()
    assert (last.waiting.prefix_id == 0).all()


def test_what_a_plan_is_told_of_speculation():
    def watching(problem):
        assert (problem.tokens_per_step, problem.decode_budget_tokens) == (2.5, 3)
        return make_policy("fcfs")(problem)

    watching.nominal_s = 1e-4
    assert simulate(draw_workload(1, 30, 200.0), watching, DRAFTING).plan_s
    with pytest.raises(ValueError, match=r"tokens_per_step must be at least 1, got 0.5"):
        replace(draw_problem(0, 2), tokens_per_step=0.5)


@given(accepted=st.floats(1.0, 6.0), answer=st.integers(1, 300))
def test_a_step_yields_the_accepted_tokens_on_the_mean(accepted, answer):
    workload = replace(
        draw_workload(0, 1), output_tokens=np.array([answer]), prompt_tokens=np.array([10])
    )
    profile = replace(DRAFTING, speculation=Speculation(accepted))
    steps = fcfs(workload, profile).steps - 1  # the first token comes with the prompt
    assert steps == pytest.approx((answer - 1) / accepted, abs=1.01)


def test_drafts_count_in_the_budget_of_a_step():
    # 3 decode with 3 budget tokens each: 7 of 16 are left to the long prompt
    workload = replace(
        draw_workload(0, 4),
        arrival_s=np.array([0.0, 0.0, 0.0, 0.001]),
        prompt_tokens=np.array([2, 2, 2, 70]),
        output_tokens=np.array([200, 200, 200, 1]),
    )
    budget = replace(PLAIN, capacity=Capacity(6, 3_000, 16))
    plain, drafting = (fcfs(workload, replace(budget, speculation=part))
                       for part in (None, Speculation(2.5, 2)))  # fmt: skip
    full = {"prefill": 13, "drafting": 7}
    assert plain.ttft_s(workload)[3] < drafting.ttft_s(workload)[3]
    assert drafting.ttft_s(workload)[3] == pytest.approx(
        sum(MODEL.step_s(full["drafting"], 3, 0) for _ in range(10)), rel=0.1
    )
    assert drafting.finish_s[0] < plain.finish_s[0]


def test_parts_that_change_nothing_change_nothing():
    workload = shared_workload(3, 60, 0)
    plain = fcfs(workload, PLAIN)
    same = fcfs(workload, replace(PLAIN, speculation=Speculation(1.0)))
    assert (plain.finish_s == same.finish_s).all()
    assert not plain.preemptions
    assert (fcfs(workload, CACHED).finish_s == plain.finish_s).all()
