"""What a request log says of predictors: the one obeyed and its shadow, on the same requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_COLUMNS = {
    "champion": ("predicted_tokens", "quantiles"),
    "shadow": ("shadow_tokens", "shadow_quantiles"),
}
_INTERVAL = ("0.1", "0.9")  # the levels between which 80 % of the answers should end


def prediction_errors(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Errors of every version in a log frame (`read_request_log`), pairs of versions together.

    One row a side: role ("champion", "shadow"), version, beside (the other side's version), rows,
    median_abs_log_ratio (of predicted to true tokens), mae_tokens, coverage_80 (share of the
    answers inside the 80 % interval, None where its levels were not logged). Only answers that
    ended by themselves count, and where a shadow followed along both sides are judged on the
    requests that both predicted.
    """
    # NaN and None mean the same here: not said
    known = frame[
        (frame["status"] == "finished")
        & (frame["output_tokens"].fillna(0).astype(float) >= 1)
        & frame["predicted_tokens"].notna()
        & frame["predictor"].notna()
    ]
    with_shadow = known["shadow"].notna() & known["shadow_tokens"].notna()
    sides: list[dict[str, Any]] = []
    for version, rows in known[~with_shadow].groupby("predictor"):
        sides.append(_side("champion", version, None, rows))
    for (version, shadow), rows in known[with_shadow].groupby(["predictor", "shadow"]):
        sides.append(_side("champion", version, shadow, rows))
        sides.append(_side("shadow", shadow, version, rows))
    return sides


def _side(role: str, version: Any, beside: Any, rows: pd.DataFrame) -> dict[str, Any]:
    tokens, quantiles = _COLUMNS[role]
    true = rows["output_tokens"].to_numpy(dtype=float)
    predicted = np.maximum(rows[tokens].to_numpy(dtype=float), 1.0)
    inside = [
        row[_INTERVAL[0]] <= length <= row[_INTERVAL[1]]
        for row, length in zip(rows[quantiles], true, strict=True)
        if isinstance(row, dict) and all(level in row for level in _INTERVAL)
    ]
    return {
        "role": role,
        "version": str(version),
        "beside": beside,
        "rows": len(rows),
        "median_abs_log_ratio": float(np.median(np.abs(np.log(predicted / true)))),
        "mae_tokens": float(np.abs(predicted - true).mean()),
        "coverage_80": float(np.mean(inside)) if inside else None,
    }
