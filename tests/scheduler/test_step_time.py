from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from lengthwise.scheduler.plan.pacing import ArrivalRate, ReplanGate
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.step_anchor import Anchor
from lengthwise.scheduler.step_fit import fit_step_time, model_error
from lengthwise.scheduler.step_time import COEFFICIENTS, StepTimeModel

TRUE = StepTimeModel(2e-3, 1e-3, 2e-5, 3e-4, 2e-7)


def timed_steps(n=600, noise=0.03, seed=0, model=TRUE):
    rng = np.random.default_rng(seed)
    decodes = rng.integers(0, 33, n)
    prefill = np.where(rng.random(n) < 0.3, rng.integers(1, 600, n), 0)
    context = decodes * rng.integers(50, 800, n)
    clean = np.array(
        [model.step_s(p, d, c) for p, d, c in zip(prefill, decodes, context, strict=True)]
    )
    return np.column_stack([prefill, decodes, context, clean * rng.lognormal(0, noise, n)])


def test_recovers_the_model_and_reports_its_error():
    model, report = fit_step_time(timed_steps())
    for name in COEFFICIENTS:
        assert getattr(model, name) == pytest.approx(getattr(TRUE, name), rel=0.15)
    assert report["median_error"] < 0.04
    assert report["held_out"] == 120


def test_a_tenth_of_wild_outliers_changes_little():
    samples = timed_steps()
    samples[::10, 3] *= 20.0
    model, report = fit_step_time(samples)
    assert model.step_s(0, 16, 4000) == pytest.approx(TRUE.step_s(0, 16, 4000), rel=0.05)
    assert report["outliers"] >= 50


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("graph_tokens", [64.0, 256.0])
def test_a_floor_under_eager_steps_is_found(seed, graph_tokens):
    true = replace(TRUE, eager_s=25e-3, graph_tokens=graph_tokens)
    model, report = fit_step_time(timed_steps(seed=seed, model=true))
    assert model.graph_tokens == graph_tokens
    assert model.eager_s == pytest.approx(25e-3, rel=0.05)
    assert model.step_s(graph_tokens - 20, 16, 4000) < 20e-3 < model.step_s(graph_tokens, 16, 4000)
    assert model.step_s(0, 32, 20_000) == pytest.approx(true.step_s(0, 32, 20_000), rel=0.03)
    assert report["mean_error"] < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_no_floor_is_found_where_there_is_none(seed):
    model, _ = fit_step_time(timed_steps(seed=seed))
    assert (model.eager_s, model.graph_tokens) == (0.0, 0.0)


def test_what_is_known_of_a_floor_stays_where_no_step_could_show_it():
    true = replace(TRUE, eager_s=25e-3, graph_tokens=256.0)
    samples = timed_steps(model=true)
    short = samples[samples[:, 0] + samples[:, 1] <= 256]
    model, _ = fit_step_time(short, anchor=Anchor(true))
    assert (model.eager_s, model.graph_tokens) == (25e-3, 256.0)


def test_a_slower_clock_is_slower_in_every_step():
    model = replace(TRUE, eager_s=25e-3, graph_tokens=256.0)
    for step in ((0, 16, 4000), (100, 16, 4000), (300, 16, 4000), (2000, 16, 4000)):
        assert model.slowed(3.0).step_s(*step) == pytest.approx(3.0 * model.step_s(*step))


@pytest.mark.parametrize(("share", "factor"), [(0.3, 3.0), (0.1, 1.8), (0.1, 0.2)])
def test_other_outliers_change_little(share, factor):
    samples = timed_steps()
    samples[np.random.default_rng(1).random(len(samples)) < share, 3] *= factor
    model, _ = fit_step_time(samples)
    assert model.step_s(0, 16, 4000) == pytest.approx(TRUE.step_s(0, 16, 4000), rel=0.02)
    assert model.step_s(300, 16, 4000) == pytest.approx(TRUE.step_s(300, 16, 4000), rel=0.02)


def test_an_effect_that_is_none_stays_at_the_bound():
    samples = timed_steps()
    samples[:, 3] = 2e-3 + 3e-4 * samples[:, 1] - 1e-9 * samples[:, 2]  # context makes it quicker
    model, report = fit_step_time(samples)
    assert model.context_token_s == 0.0
    assert report["median_error"] < 0.05


def test_an_effect_never_seen_is_zero_not_noise():
    samples = timed_steps()
    model, _ = fit_step_time(samples[samples[:, 0] == 0])
    assert model.prefill_token_s == 0.0
    assert model.prefill_step_s == 0.0


# -- what is believed beforehand ---------------------------------------------------------------

BELIEVED = load_profile("tiny-cpu").step_time
REACH = (2048.0, 32.0)


def steps_of(truth, longest, busiest, n=2000, seed=0, noise=0.05):
    """Steps of a server that sees prompts of 5 to `longest` tokens, `busiest` answers at most."""
    rng = np.random.default_rng(seed)
    decodes = rng.integers(0, busiest + 1, n)
    prefill = np.where(rng.random(n) < 0.2, rng.integers(5, longest + 1, n), 0)
    context = decodes * rng.integers(50, 300, n)
    clean = np.array([truth(p, d, c) for p, d, c in zip(prefill, decodes, context, strict=True)])
    return np.column_stack([prefill, decodes, context, clean * rng.lognormal(0, noise, n)])


def short_prompts_are_dear(prefill, decodes, context):
    """Of a small prompt every token costs seven times as much: the kernel's own time."""
    return BELIEVED.step_s(prefill, decodes, context) + 5e-4 * min(prefill, 80)


@pytest.mark.parametrize("longest", [20, 80, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_short_prompts_do_not_make_long_ones_dear(longest, seed):
    samples = steps_of(short_prompts_are_dear, longest, 32, seed=seed)
    free, _ = fit_step_time(samples)
    held, report = fit_step_time(samples, anchor=Anchor(BELIEVED, *REACH))
    long_s = BELIEVED.step_s(2000, 0, 0)
    assert held.step_s(2000, 0, 0) < 1.35 * long_s
    if longest < 200:
        assert free.step_s(2000, 0, 0) > 2.0 * long_s  # which is what was believed of it
    assert report["median_error"] < 0.15


@pytest.mark.parametrize("speed", [0.05, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("longest", "busiest"), [(30, 2), (300, 8), (2048, 32)])
def test_a_machine_of_another_speed_is_learned_at_any_span(speed, longest, busiest):
    """Also a graphics card that starts from the profile of two cores."""

    def truth(*work):
        return speed * BELIEVED.step_s(*work)

    model, _ = fit_step_time(steps_of(truth, longest, busiest), anchor=Anchor(BELIEVED, *REACH))
    for work in ((2000, 0, 0), (100, 4, 800), (0, 32, 8000), (0, 1, 100)):
        assert model.step_s(*work) == pytest.approx(truth(*work), rel=0.25)


@pytest.mark.parametrize("name", COEFFICIENTS[2:])
@pytest.mark.parametrize(("longest", "busiest"), [(64, 3), (512, 8), (1500, 24)])
def test_no_coefficient_moves_further_than_the_steps_span(name, longest, busiest):
    """In truth it is ten times as large as is believed of it, or nothing at all."""
    for factor in (10.0, 0.0):
        truth = StepTimeModel.from_dict(
            BELIEVED.to_dict() | {name: getattr(BELIEVED, name) * factor}
        )
        samples = steps_of(truth.step_s, longest, busiest)
        anchor = Anchor(BELIEVED, *REACH)
        model, _ = fit_step_time(samples, anchor=anchor)
        moved = np.asarray(model.coefficients) / anchor.scaled(samples) - 1.0
        span = anchor.spans(samples)[2:]
        assert (np.abs(moved[2:]) <= span / (1.0 - span) + 1e-6).all()


def test_what_is_spanned_is_learned_whatever_was_believed():
    samples = steps_of(TRUE.step_s, 2048, 32, n=4000)
    for believed in (BELIEVED, StepTimeModel(1e-2, 0, 0, 0, 0)):
        model, _ = fit_step_time(samples, anchor=Anchor(believed, *REACH))
        for work in ((2000, 0, 0), (200, 16, 3000), (0, 32, 8000)):
            assert model.step_s(*work) == pytest.approx(TRUE.step_s(*work), rel=0.1)


def test_what_was_never_seen_stays_as_believed():
    samples = steps_of(BELIEVED.step_s, 500, 16)
    model, _ = fit_step_time(samples[samples[:, 0] == 0], anchor=Anchor(BELIEVED, *REACH))
    assert model.prefill_token_s == pytest.approx(BELIEVED.prefill_token_s, rel=0.1)
    assert model.prefill_step_s == pytest.approx(BELIEVED.prefill_step_s, rel=0.1)


def test_a_few_long_prompts_are_no_span():
    samples = steps_of(BELIEVED.step_s, 50, 32)
    anchor = Anchor(BELIEVED, *REACH)
    for count, spans in ((4, False), (5, True)):
        samples[:count, 0] = 2048
        assert (anchor.spans(samples)[2] == 1.0) == spans


@pytest.mark.parametrize(
    "samples",
    [np.ones((5, 4)), np.ones((30, 3)), np.full((30, 4), np.nan), np.zeros((30, 4))],
)
def test_refuses_samples_that_say_nothing(samples):
    with pytest.raises(ValueError, match=r"samples|steps"):
        fit_step_time(samples)


def test_round_trip_and_bad_models():
    assert StepTimeModel.from_dict(TRUE.to_dict()) == TRUE
    with pytest.raises(ValueError, match="lacks"):
        StepTimeModel.from_dict({})
    with pytest.raises(ValueError, match="base_s"):
        StepTimeModel(-1.0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="take time"):
        StepTimeModel(0.0, 0, 0, 0, 0)


def test_the_gate_keeps_planning_below_its_share():
    gate = ReplanGate(plan_share=0.01, max_age_s=1.0)
    assert gate.due(0.0)
    gate.planned(0.0, 0.001)
    gate.mark()
    assert not gate.due(0.05)
    assert gate.due(0.1)
    gate.planned(0.1, 0.001)
    assert not gate.due(0.5)  # nothing changed
    assert gate.due(1.2)  # but deadlines come nearer
    assert gate.due(-5.0)  # the clock stepped back


def test_the_rate_is_of_the_window():
    rate = ArrivalRate(window_s=10.0)
    for t in np.arange(0.0, 20.0, 0.5):
        rate.add(float(t))
    assert rate.rps(20.0) == pytest.approx(2.0, rel=0.1)
    assert 0.0 < rate.rps(100.0) < 0.1


def test_where_few_arrive_in_the_window_the_last_ones_say():
    rate = ArrivalRate(window_s=10.0, least=8)
    for t in np.arange(7) * 4.0:
        rate.add(float(t))
    assert rate.rps(24.0) == 0.0
    for t in np.arange(7, 30) * 4.0:
        rate.add(float(t))
    assert rate.rps(117.0) == pytest.approx(0.25, rel=0.15)


@pytest.mark.parametrize("lasts_s", [0.0, 1.0])
def test_a_burst_with_nobody_after_it_is_not_a_load(lasts_s):
    rate = ArrivalRate()
    for t in np.linspace(0.0, lasts_s, 400):
        rate.add(float(t))
    for after_s in (0.5, 1.0, 4.0):
        assert rate.rps(lasts_s + after_s) <= 1.01 / after_s


def test_a_burst_before_a_trickle_is_not_its_rate():
    rate = ArrivalRate()
    for t in [0.0] * 400 + [2.0, 4.0, 6.0]:
        rate.add(t)
    assert rate.rps(6.1) < 3.0


@given(st.integers(0, 1000), st.floats(2.0, 200.0))
@settings(max_examples=30, deadline=None)
def test_a_steady_load_is_what_the_window_says(seed, rps):
    times = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rps, 3000))
    rate, plain = ArrivalRate(), 0
    for t in times[times < 40.0]:
        rate.add(float(t))
        since = times[(times <= t) & (times >= t - 15.0)]
        if len(since) >= 8 and t > 15.0:
            usual = len(since) / max(t - since[0], 1e-3)
            plain += rate.rps(float(t)) < 0.5 * usual
    assert plain <= 2


def test_a_fit_far_from_what_was_believed_ends_soon(monkeypatch):
    """Between narrow bounds the method may go to and fro: 5,000 looks, seconds beside the engine's
    loop."""
    looks = []

    def counted(*args: Any, **options: Any) -> Any:
        found = least_squares(*args, **options)
        looks.append(found.nfev)
        return found

    rng = np.random.default_rng(1)
    truth = StepTimeModel(8e-3, 6e-4, 2.5e-5, 8e-5, 1.5e-8)
    believed = replace(truth, prefill_token_s=2.5e-3, decode_seq_s=8e-7, context_token_s=1e-6)
    prefill = np.where(rng.random(2000) < 0.2, rng.integers(1, 4000, 2000), 0)
    decodes = rng.integers(1, 200, 2000)
    work = np.column_stack([prefill, decodes, decodes * rng.integers(100, 2000, 2000)])
    seconds = [truth.step_s(*row) for row in work] * rng.lognormal(0.0, 0.05, 2000)
    monkeypatch.setattr("lengthwise.scheduler.step_fit.least_squares", counted)
    samples = np.column_stack([work, seconds])
    found, _ = fit_step_time(samples, anchor=Anchor(believed, 8192.0, 256.0))
    assert max(looks) <= 100
    assert model_error(found, samples) < 0.3 * model_error(believed, samples)
