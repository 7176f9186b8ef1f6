"""Durations logged one step late are given back to their steps; others are left as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.scheduler.step_alignment import aligned
from lengthwise.scheduler.step_fit import fit_step_time
from lengthwise.scheduler.step_time import StepTimeModel

H200 = StepTimeModel(0.0082, 0.0017, 31e-6, 35e-6, 3.3e-8)


def steps(seed, n=600, prompts=0.15, noise=0.03, model=H200):
    """Steps of a busy engine, of which a share has prompts; durations with relative noise."""
    rng = np.random.default_rng(seed)
    prefill = np.where(rng.random(n) < prompts, rng.integers(16, 2048, n), 0)
    decodes = rng.integers(1, 128, n)
    context = decodes * rng.integers(50, 600, n)
    features = np.column_stack([prefill, decodes, context]).astype(float)
    exact = np.array([model.step_s(*row) for row in features])
    return np.column_stack([features, exact * np.exp(rng.normal(0.0, noise, n))])


def late(samples):
    """As they are logged where each answer is read when the step after it has ended."""
    return np.column_stack([samples[:-1, :3], samples[1:, 3]])


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.03, 0.1]))
@settings(max_examples=20, deadline=None)
def test_late_durations_go_back_to_their_steps(seed, noise):
    samples = steps(seed, noise=noise)
    assert np.array_equal(aligned(late(samples)), samples[1:-1])


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.03, 0.1]))
@settings(max_examples=20, deadline=None)
def test_durations_of_their_own_steps_stay(seed, noise):
    samples = steps(seed, noise=noise)
    assert aligned(samples) is samples


def test_decodes_alone_say_nothing_of_a_shift():
    samples = steps(3, prompts=0.0)
    samples[:, 1:3] = (40, 9000)  # a batch that stays the same
    assert aligned(samples) is samples


def test_few_steps_and_steps_without_duration_stay():
    samples = steps(4)
    few = late(samples)[:20]
    assert aligned(few) is few
    samples[5, 3] = 0.0
    assert aligned(samples) is samples


def test_the_price_of_a_prompt_token_is_found_through_the_shift():
    found, _ = fit_step_time(aligned(late(steps(5))))
    assert found.prefill_token_s == pytest.approx(H200.prefill_token_s, rel=0.1)
    booked_wrong, _ = fit_step_time(late(steps(5)))
    assert booked_wrong.prefill_token_s < 0.5 * H200.prefill_token_s


def launched_late(samples, share):
    """As they are logged where the answer before prompts is read when they have been launched."""
    logged = samples.copy()
    prompts = np.flatnonzero(samples[1:, 0] > 0) + 1
    held_s = share * np.maximum(0.0, samples[prompts, 3] - samples[prompts - 1, 3])
    np.add.at(logged[:, 3], prompts - 1, held_s)
    np.add.at(logged[:, 3], prompts, -held_s)
    return logged


@pytest.mark.parametrize("prompts", [0.08, 0.3])
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_what_launching_prompts_added_to_the_decodes_before_goes_back_to_them(seed, share, prompts):
    samples = steps(seed, n=1500, prompts=prompts)
    logged = launched_late(samples, share)
    found = aligned(logged)
    assert found[:, 3].sum() == pytest.approx(logged[:, 3].sum())
    assert (found[:, 3] > 0).all()
    model, _ = fit_step_time(found)
    wrong, _ = fit_step_time(logged)
    asked = samples[samples[:, 0] > 0][:, :3]
    true_s = sum(H200.step_s(*row) for row in asked)
    assert sum(model.step_s(*row) for row in asked) == pytest.approx(true_s, rel=0.06)
    assert model.step_s(0, 64, 20_000) == pytest.approx(H200.step_s(0, 64, 20_000), rel=0.04)
    if prompts < 0.1:  # not one after another: nothing hides it
        assert sum(wrong.step_s(*row) for row in asked) < 0.8 * true_s
