"""The simulator's second estimates: due at their tokens, and nothing without them changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.simulator.opening_estimates import OpeningEstimates
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

LEVELS = np.array((0.1, 0.5, 0.9))
PROFILE = load_profile("tiny-cpu")


def workload(n=60, seed=0, e2e_s=6.0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 200, n)
    return SimWorkload(
        arrival_s=np.sort(rng.uniform(0.0, 3.0, n)),
        prompt_tokens=rng.integers(10, 100, n),
        output_tokens=tokens,
        ttft_s=np.full(n, np.inf),
        tpot_s=np.full(n, np.inf),
        e2e_s=np.full(n, e2e_s),
        weight=np.ones(n),
        class_id=np.zeros(n, dtype=np.int64),
        quantiles=np.tile([30.0, 100.0, 300.0], (n, 1)),
        levels=LEVELS,
    )


def estimates(load, *after):
    true = np.repeat(load.output_tokens[:, None].astype(float), len(LEVELS), axis=1)
    return OpeningEstimates(np.array(after), np.stack([true * (k + 1) for k in range(len(after))]))


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(0, 120), min_size=1, max_size=20),
    st.integers(0, 2**31),
)
def test_a_row_is_known_by_the_last_estimate_due(after, generated, seed):
    rng = np.random.default_rng(seed)
    n = len(generated)
    after, generated = np.sort(after), np.array(generated)
    told = rng.uniform(1, 9, (len(after), n, 3))
    told[rng.random((len(after), n)) < 0.3] = np.nan
    first = rng.uniform(1, 9, (n, 3))
    rows = rng.permutation(n)
    found = OpeningEstimates(after, told).known(first, rows, generated)
    for place, row in enumerate(rows):
        want = first[place]
        for k, tokens in enumerate(after):
            if generated[place] >= tokens and not np.isnan(told[k, row, 0]):
                want = told[k, row]
        np.testing.assert_array_equal(found[place], want)


def test_plans_are_told_of_what_has_begun():
    load = workload()
    seen = []

    class Watching:
        name, nominal_s = "watching", 0.001

        def __init__(self):
            self.policy = make_policy("fcfs")

        def __call__(self, problem):
            rows = problem.running
            seen.extend(zip(rows.generated_tokens, rows.quantiles[:, 1], strict=True))
            return self.policy(problem)

    simulate(load, Watching(), PROFILE, openings=estimates(load, 16, 48))
    assert {q for g, q in seen if g < 16} == {100.0}
    middle = [q for g, q in seen if 16 <= g < 48]
    assert middle
    assert set(middle) <= set(load.output_tokens.tolist())
    assert {q for g, q in seen if g >= 48} <= {2.0 * t for t in load.output_tokens}


def test_estimates_that_say_the_same_change_nothing():
    load = workload(seed=3)
    same = OpeningEstimates(np.array([16, 48]), np.stack([load.quantiles] * 2))
    runs = [
        simulate(load, make_policy("sa", seed=1), PROFILE, openings=openings)
        for openings in (None, same)
    ]
    np.testing.assert_array_equal(runs[0].finish_s, runs[1].finish_s)
    np.testing.assert_array_equal(runs[0].first_token_s, runs[1].first_token_s)


def test_what_does_not_fit_the_workload_is_refused():
    load = workload()
    with pytest.raises(ValueError, match=r"openings must have quantiles \(60, 3\)"):
        simulate(
            load, make_policy("fcfs"), PROFILE,
            openings=OpeningEstimates(np.array([16]), np.ones((1, 59, 3))),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("after", "shape", "named"),
    [
        ([16, 16], (2, 5, 3), "must ascend from 1"),
        ([0], (1, 5, 3), "must ascend from 1"),
        ([16], (2, 5, 3), r"must be \(1, n, q\)"),
        ([16], (5, 3), r"must be \(1, n, q\)"),
    ],
)
def test_malformed_estimates_are_refused(after, shape, named):
    with pytest.raises(ValueError, match=named):
        OpeningEstimates(np.array(after), np.ones(shape))


def test_true_lengths_from_the_first_token_on_meet_no_fewer_than_guesses():
    """An overload in which who runs decides whom to let wait."""
    met = {"prompt": 0, "opening": 0}
    for seed in range(3):
        load = replace(workload(200, seed, e2e_s=4.0), arrival_s=np.linspace(0.0, 8.0, 200))
        for name, openings in (("prompt", None), ("opening", estimates(load, 1))):
            result = simulate(load, make_policy("sa", seed=seed), PROFILE, openings=openings)
            met[name] += int(result.met(load).sum())
    assert met["opening"] >= met["prompt"] - 6  # scatter of 600 requests
