"""Answers to one prompt, twice: what they say of predictors, and of the best there could be."""

from __future__ import annotations

import numpy as np
import pytest

from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.predictor.fitting.metrics import kendall_tau, mae
from lengthwise.predictor.model import LengthPredictor
from lengthwise.training.real_demo.answered_twice import (
    CEILING,
    CLASS_ALONE,
    PERFECT,
    judge,
    perfect,
    tau_half_width,
)


def request(prompt: str) -> WorkloadRequest:
    return WorkloadRequest(0.0, 4, 9, Slo(e2e_s=30.0, slo_class="code"), prompt)


def test_what_a_second_answer_and_the_class_say_of_the_first(predictor_dir):
    predictor = LengthPredictor.load(predictor_dir)
    requests = [request(f"write {'a' * n}") for n in range(30)]
    answers = {
        "temperature": 0.7, "first": list(range(1, 31)), "second": [2, 1, *range(3, 31)],
        "cut_at_max_tokens": 0,
    }  # fmt: skip
    found = judge(requests, answers, {"p": predictor}, predictor, limit=30)
    assert found["same_length_twice"] == 28 / 30
    assert found["rows"][CEILING]["mae"] == pytest.approx(2 / 30)
    assert found["rows"][CEILING]["tau"] == found["rows"][CEILING]["within_class_tau"] > 0.99
    alone = found["rows"][CLASS_ALONE]
    assert found["rows"][PERFECT]["mae"] < found["rows"][CEILING]["mae"]
    assert alone["tau"] == 0  # one class
    assert alone["mae"] == pytest.approx(
        np.abs(np.arange(1, 31) - min(30, np.interp(0.5, predictor.levels,
                                                    predictor.class_prior("code")))).mean()
    )  # fmt: skip
    assert 0 <= found["rows"]["p"]["coverage"] <= 1


def test_a_perfect_predictor_is_reckoned_from_two_draws():
    """Drawn: lengths are a prompt's own part and chance, which nobody knows."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=4000)
    first, second = known + rng.normal(size=(2, 4000))
    reckoned = perfect({"tau": kendall_tau(first, second), "within_class_tau": None,
                        "mae": mae(first, second)})  # fmt: skip
    assert reckoned["tau"] == pytest.approx(kendall_tau(first, known), abs=0.03)
    assert reckoned["mae"] == pytest.approx(mae(first, known), rel=0.03)
    assert reckoned["within_class_tau"] is None
    sure = perfect({"tau": 1.0, "within_class_tau": -0.2, "mae": 0.0})
    assert (sure["tau"], sure["within_class_tau"]) == (1.0, 0.0)


def test_taus_of_pairs_that_have_nothing_to_do_with_each_other_lie_in_the_interval():
    rng = np.random.default_rng(1)
    taus = [abs(kendall_tau(*rng.normal(size=(2, 30)))) for _ in range(400)]
    assert np.mean(np.array(taus) < tau_half_width(30)) == pytest.approx(0.95, abs=0.03)
    assert tau_half_width(1) == np.inf
