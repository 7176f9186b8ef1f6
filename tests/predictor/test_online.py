import numpy as np
import pytest

from lengthwise.predictor.distribution import DEFAULT_LEVELS, LengthDistribution
from lengthwise.predictor.serving.correction import MOST_CLASSES, OnlineCorrection, at_level

SAID = (100.0 * np.exp(-0.641), 100.0, 100.0 * np.exp(0.641))  # log-normal, sigma .5


def stream(
    correction: OnlineCorrection,
    n: int,
    factor: float,
    name: str,
    rng: np.random.Generator,
    sigma: float = 0.5,
) -> None:
    for _ in range(n):
        correction.update(SAID, max(1.0, 100.0 * factor * rng.lognormal(0.0, sigma)), name)


def test_a_model_that_talks_longer_is_tracked_within_a_few_hundred_requests() -> None:
    correction = OnlineCorrection()
    stream(correction, 300, 1.6, "chat", np.random.default_rng(0))
    assert np.exp(correction.shift("chat")) == pytest.approx(1.6, rel=0.12)


def test_no_change_is_left_alone() -> None:
    correction = OnlineCorrection()
    stream(correction, 500, 1.0, "chat", np.random.default_rng(1))
    assert abs(correction.shift("chat")) < 0.15


def test_a_change_back_is_followed_too() -> None:
    correction, rng = OnlineCorrection(), np.random.default_rng(2)
    stream(correction, 300, 1.6, "chat", rng)
    stream(correction, 500, 1.0, "chat", rng)
    assert abs(correction.shift("chat")) < 0.15


def test_a_new_class_starts_from_what_all_classes_share() -> None:
    correction = OnlineCorrection()
    stream(correction, 300, 1.6, "chat", np.random.default_rng(0))
    assert correction.shift("code") > 0.3
    assert OnlineCorrection().shift("code") == 0.0


def test_runaway_answers_do_not_drag_it() -> None:
    correction, rng = OnlineCorrection(), np.random.default_rng(3)
    for i in range(400):
        correction.update(SAID, 1e6 if i % 20 == 0 else 100.0 * rng.lognormal(0.0, 0.5), "chat")
    assert abs(correction.shift("chat")) < 0.15
    assert correction.stretch("chat") == pytest.approx(1.0, abs=0.25)


def test_a_model_less_predictable_than_thought_gets_wider_intervals() -> None:
    correction, rng = OnlineCorrection(), np.random.default_rng(5)
    stream(correction, 400, 1.0, "chat", rng, sigma=1.0)
    assert correction.stretch("chat") == pytest.approx(2.0, rel=0.2)
    row = np.exp(np.log(100.0) + 0.5 * np.linspace(-1.6, 2.3, 12))
    wider = correction.correct(row, np.array(DEFAULT_LEVELS), "chat")
    assert np.log(wider[-1] / wider[0]) == pytest.approx(
        correction.stretch("chat") * np.log(row[-1] / row[0])
    )


def test_certain_predictions_have_no_spread_to_judge() -> None:
    correction = OnlineCorrection()
    for _ in range(100):
        correction.update((50.0, 50.0, 50.0), 100.0, "chat")
    assert correction.stretch("chat") == 1.0
    assert (correction.correct(np.full(12, 50.0), np.array(DEFAULT_LEVELS), "chat") > 80).all()


def test_apply_keeps_caps_and_order() -> None:
    correction = OnlineCorrection()
    stream(correction, 200, 3.0, "chat", np.random.default_rng(4))
    row = [10.0 * 1.3**i for i in range(12)]
    d = LengthDistribution.from_rows(DEFAULT_LEVELS, [row, row], cap=[100.0, 1e6])
    shifted = correction.apply(d, ["chat", "chat"])
    assert shifted.quantiles[0, -1] == 100.0
    assert shifted.quantiles[1, 5] > 2.0 * row[5]


def test_cut_answers_below_the_prediction_say_nothing() -> None:
    correction = OnlineCorrection()
    for _ in range(50):
        correction.update((400.0, 500.0, 900.0), 64.0, "chat", censored=True)
    assert correction.shift("chat") == 0.0
    with pytest.raises(ValueError, match="at least 1"):
        correction.update((0.0, 5.0, 9.0), 10.0)


def test_names_without_end_do_not_grow_the_state() -> None:
    correction = OnlineCorrection()
    for i in range(10 * MOST_CLASSES):
        correction.update((8.0, 10.0, 14.0), 20.0, f"class {i}")
    assert len(correction.learned()) == MOST_CLASSES
    assert correction.shift("a new one") == pytest.approx(np.log(2) * 200 / 220)


@pytest.mark.parametrize(
    "levels", [(0.1, 0.5, 0.9), (0.1, 0.3, 0.8, 0.95), (0.6, 0.9), (0.1, 0.2), (0.5,)]
)
def test_quantiles_are_stretched_about_the_interpolated_median(levels) -> None:
    correction = OnlineCorrection()
    stream(correction, 300, 1.6, "chat", np.random.default_rng(3), sigma=1.5)
    for seed in range(20):
        rows = np.sort(np.random.default_rng(seed).uniform(1.0, 900.0, len(levels)))
        middle = np.log(np.interp(0.5, levels, rows))
        logs = middle + correction.stretch("chat") * (np.log(rows) - middle)
        wanted = np.exp(np.maximum(logs + correction.shift("chat"), 0.0))
        assert correction.correct(rows, np.array(levels), "chat").tolist() == wanted.tolist()


def test_a_quantile_between_levels_is_numpys_to_the_bit() -> None:
    rng = np.random.default_rng(4)
    levels = np.array(DEFAULT_LEVELS)
    for _ in range(50):
        rows = np.sort(rng.uniform(1.0, 900.0, len(levels)))
        for level in (0.0, 0.07, 0.1, 0.5, 0.55, 0.9, 0.999, *rng.uniform(0.0, 1.0, 5).tolist()):
            assert at_level(level, levels, rows) == np.interp(level, levels, rows)
