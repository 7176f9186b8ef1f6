"""Drift alarms on drawn lengths: log-normal around what was predicted, sigma .5."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from lengthwise.predictor.serving.correction import MOST_CLASSES
from lengthwise.predictor.serving.drift import (
    ALL_CLASSES,
    DriftMonitor,
    DriftSettings,
    binomial_limits,
)

SIGMA = 0.5
SAID = (100 * math.exp(-1.2816 * SIGMA), 100.0, 100 * math.exp(1.2816 * SIGMA))


def feed(monitor, n, factor=1.0, name="chat", seed=0, sigma=SIGMA, at=0, **known):
    rng = np.random.default_rng(seed)
    events = []
    for i in range(n):
        tokens = max(1.0, 100 * factor * rng.lognormal(0.0, sigma))
        events += monitor.update(SAID, tokens, name, at + i, **known)
    return events


def raised(events):
    return {(e.alarm.cause, e.alarm.slo_class) for e in events if e.raised}


def test_a_right_predictor_raises_nothing():
    monitor = DriftMonitor()
    assert feed(monitor, 5000) == []
    figures = monitor.figures()["chat"]
    assert figures["rows"] == figures["judged"] == 5000
    assert figures["actual_over_predicted"] == pytest.approx(1.0, abs=0.15)
    assert figures["coverage"] == pytest.approx(0.8, abs=0.1)


def test_a_change_raises_says_which_way_and_ends_when_it_is_over():
    monitor = DriftMonitor()
    feed(monitor, 500)
    events = feed(monitor, 300, 2.0, seed=1, at=500)
    assert ("level", "chat") in raised(events)
    assert {name for _, name in raised(events)} == {"chat", ALL_CLASSES}
    first = events[0].alarm
    assert 500 < first.since_unix_s < 600
    assert first.cause == "level"
    assert first.value == pytest.approx(2.0, rel=0.4)
    assert monitor.alarms
    ended = [e for e in feed(monitor, 600, seed=2, at=800) if not e.raised]
    assert monitor.alarms == []
    assert ("level", first.since_unix_s) in {(e.alarm.cause, e.alarm.since_unix_s) for e in ended}


def test_a_predictor_wrong_from_the_start_is_found():
    assert ("level", "chat") in raised(feed(DriftMonitor(), 300, 0.6))


@pytest.mark.parametrize(("factor", "within"), [(2.0, 80), (0.5, 80), (1.4, 200)])
def test_the_more_the_lengths_change_the_sooner_it_is_found(factor, within):
    """The window still holds answers of before: the newest must tell a doubling by themselves."""
    for seed in range(10):
        monitor = DriftMonitor()
        assert feed(monitor, 1000, seed=seed) == []
        assert ("level", "chat") in raised(feed(monitor, within, factor, seed=100 + seed))


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_intervals_too_wide_or_too_narrow_are_a_matter_of_coverage(sigma):
    events = feed(DriftMonitor(), 400, sigma=sigma)
    assert raised(events) == {("coverage", "chat"), ("coverage", ALL_CLASSES)}
    assert all((e.alarm.value > 0.8) == (sigma < SIGMA) for e in events)


def test_only_the_class_that_drifts_is_named_beside_all():
    monitor, events = DriftMonitor(), []
    for block in range(80):
        events += feed(monitor, 10, name="code", seed=block)
        factor = 2.0 if block >= 40 else 1.0
        events += feed(monitor, 10, factor, seed=1000 + block)
    assert {name for _, name in raised(events)} <= {"chat", ALL_CLASSES}
    assert ("level", "chat") in raised(events)


def test_an_alarm_that_wavers_about_its_threshold_is_one_alarm():
    settings = DriftSettings()
    monitor = DriftMonitor(settings)
    events = feed(monitor, 5000, math.exp(settings.level), sigma=0.2)
    levels = [e for e in events if (e.alarm.cause, e.alarm.slo_class) == ("level", "chat")]
    assert [e.raised for e in levels] == [True]


def drawn_and_cut(monitor, n, most):
    rng = np.random.default_rng(3)
    events = []
    for i in range(n):
        tokens = 100 * rng.lognormal(0.0, SIGMA)
        cut = tokens >= most
        events += monitor.update(
            SAID, min(tokens, most), "chat", i, most_tokens=most, cut=cut, version="v"
        )
    return events


@pytest.mark.parametrize("most", [50, 150, 200, 400])
def test_cut_answers_raise_nothing_by_themselves(most):
    """At 50 every answer is cut or short; at 200 a right predictor's upper tail is cut."""
    monitor = DriftMonitor()
    assert drawn_and_cut(monitor, 3000, most) == []
    figures = monitor.figures()["chat"]
    assert figures["judged"] == (3000 if most >= 200 else 0)


@pytest.mark.parametrize("high", [95.9996, 96.0])
def test_an_interval_that_ends_at_the_limit_is_not_judged(high):
    """A version that learned from answers cut at 96 says 96 of most: what was cut may be inside."""
    monitor, events = DriftMonitor(), []
    for i in range(400):
        tokens, cut = (60.0, False) if i % 10 == 0 else (96.0, True)
        events += monitor.update((50.0, 95.9, high), tokens, "chat", i, most_tokens=96, cut=cut)
    assert events == []
    assert monitor.figures()["chat"]["judged"] == 0


def test_answers_that_are_all_cut_far_beyond_their_prediction_are_drift():
    monitor, events = DriftMonitor(), []
    for i in range(200):
        events += monitor.update(SAID, 400.0, "chat", i, most_tokens=400, cut=True)
    assert ("level", "chat") in raised(events)
    assert ("coverage", "chat") in raised(events)


def test_another_version_starts_afresh_and_stragglers_of_the_old_one_do_not_count():
    monitor = DriftMonitor()
    feed(monitor, 300, 2.0, version="1")
    assert monitor.alarms
    events = feed(monitor, 9, version="2") + feed(monitor, 5, 2.0, version="1")
    assert events == []
    assert monitor.version == "1"
    events = feed(monitor, 40, version="2")
    assert monitor.version == "2"
    assert events
    assert not any(e.raised for e in events)
    assert monitor.alarms == []
    assert monitor.figures()["chat"]["rows"] == 31  # from the tenth of its own in a row
    feed(monitor, 3, 2.0, version="1")
    assert monitor.figures()["chat"]["rows"] == 31


def test_reset_ends_alarms_and_forgets():
    monitor = DriftMonitor()
    feed(monitor, 300, 2.0)
    up = monitor.alarms
    assert [e.alarm for e in monitor.reset()] == up
    assert monitor.alarms == []
    assert set(monitor.figures()) == {ALL_CLASSES}


def test_memory_is_bounded_in_classes_and_rows():
    monitor = DriftMonitor(DriftSettings(window=20, newest=5, least_rows=10))
    for i in range(300):
        monitor.update(SAID, 100.0, f"class-{i}", i)
    assert len(monitor.figures()) == MOST_CLASSES + 1
    assert monitor.figures()[ALL_CLASSES]["rows"] == 300
    stream = monitor._streams[ALL_CLASSES]
    assert len(stream._ratios) == len(stream._ratios._ranked) == len(stream._held) == 20
    assert len(stream._newest) == 5
    monitor.update(SAID, 100.0, ALL_CLASSES, 0)  # a client may call its class so
    assert monitor.figures()[ALL_CLASSES]["rows"] == 301


@pytest.mark.parametrize(
    ("predicted", "tokens"),
    [((90, 80, 100), 5), ((0.5, 1, 2), 5), (SAID, 0), (SAID, math.nan), ((1, 2, math.inf), 5)],
)
def test_lengths_that_cannot_be_are_refused(predicted, tokens):
    with pytest.raises(ValueError, match="lengths must be"):
        DriftMonitor().update(predicted, tokens, "chat", 0)


@pytest.mark.parametrize(
    "wrong",
    [{"least_rows": 0}, {"least_rows": 300}, {"newest": 201}, {"level": 0.0}, {"tolerance": 0.3}],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"least_rows|newest|level|nominal"):
        DriftSettings(**wrong)


@pytest.mark.parametrize("rows", [10, 100, 200])
@pytest.mark.parametrize("alpha", [1e-5, 0.05])
def test_binomial_limits_are_those_of_the_exact_test(rows, alpha):
    least, most = binomial_limits(rows, 0.8, 0.05, alpha)
    for hits in range(rows + 1):
        low = binomtest(hits, rows, 0.75, "less").pvalue
        high = binomtest(hits, rows, 0.85, "greater").pvalue
        assert (least <= hits <= most) == (low > alpha / 2 and high > alpha / 2)
