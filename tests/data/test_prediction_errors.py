from __future__ import annotations

import math

import pandas as pd
import pytest

from lengthwise.data.request_log import ROW_KEYS
from lengthwise.data.request_log.errors_of import prediction_errors


def row(output_tokens, predicted, shadow=None, **changes):
    made = dict.fromkeys(ROW_KEYS) | {
        "status": "finished",
        "output_tokens": output_tokens,
        "predictor": "m/1",
        "predicted_tokens": predicted,
        "quantiles": {"0.1": predicted / 2, "0.9": predicted * 2},
    }
    if shadow is not None:
        made |= {
            "shadow": "m/2",
            "shadow_tokens": shadow,
            "shadow_quantiles": {"0.1": shadow * 0.9, "0.9": shadow * 1.1},
        }
    return made | changes


def errors(*rows):
    return prediction_errors(pd.DataFrame(rows, columns=list(ROW_KEYS)))


def test_champion_and_shadow_are_judged_on_the_same_answers():
    alone, champion, shadow = errors(
        row(100, 50.0),
        row(100, 25.0, shadow=100.0),
        row(100, 200.0, shadow=150.0),
        row(500, 1.0, shadow=1.0, status="length"),
        row(0, 1.0, shadow=1.0),
    )
    assert (alone["role"], alone["version"], alone["rows"]) == ("champion", "m/1", 1)
    assert [side["beside"] for side in (alone, champion, shadow)] == [None, "m/2", "m/1"]
    assert alone["median_abs_log_ratio"] == pytest.approx(math.log(2))
    assert (champion["version"], champion["rows"]) == ("m/1", 2)
    assert champion["median_abs_log_ratio"] == pytest.approx(math.log(8) / 2)
    assert (champion["mae_tokens"], champion["coverage_80"]) == (87.5, 0.5)
    assert (shadow["role"], shadow["version"], shadow["rows"]) == ("shadow", "m/2", 2)
    assert shadow["median_abs_log_ratio"] == pytest.approx(math.log(1.5) / 2)
    assert (shadow["mae_tokens"], shadow["coverage_80"]) == (25.0, 0.5)


def test_without_predictions_there_is_nothing_to_judge():
    assert errors(row(100, 1.0, predicted_tokens=None), row(9, 1.0, predictor=None)) == []
    (side,) = errors(row(9, 1.0, quantiles=None))
    assert side["coverage_80"] is None
