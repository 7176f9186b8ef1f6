"""The largest group of a log's rows that one predictor can learn from or be judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.data.arrays import BoolArray
from lengthwise.data.errors import InputError

_TEXT_SHARE = 0.5
"""Text is read by every version, features by one: rows with text are taken where there are at
least so many of them for each row of the largest group of features."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows that go together: a mask (n,), and what the others lack, as [{reason, rows}].

    `contract` and `width` are those of the features, None for a group of rows with text.
    """

    rows: BoolArray
    left_out: list[dict[str, Any]]
    contract: str | None = None
    width: int | None = None


def largest_group(frame: pd.DataFrame, what: str) -> RowGroup:
    """The rows with text, or those with features of one contract and width.

    `frame` has the columns prompt, features and feature_contract. InputError, naming `what`, where
    no row has either.
    """
    with_text = np.array([isinstance(t, str) and t != "" for t in frame["prompt"]], dtype=bool)
    keys = [_key(frame["features"], frame["feature_contract"], i) for i in range(len(frame))]
    sizes = pd.Series(keys, dtype=object).value_counts()
    if not with_text.any() and sizes.empty:
        raise InputError(f"{what} holds neither prompt text nor features")
    if sizes.empty or with_text.sum() >= _TEXT_SHARE * sizes.iloc[0]:
        missing = int((~with_text).sum())
        return RowGroup(with_text, _reasons({"without prompt text": missing}))
    contract, width = sizes.index[0]
    rows = np.array([key == (contract, width) for key in keys], dtype=bool)
    others = {
        f"features {other} of width {wide}": int(count)
        for (other, wide), count in sizes.iloc[1:].items()
    }
    others["without features"] = sum(key is None for key in keys)
    return RowGroup(rows, _reasons(others), str(contract), int(width))


def of_group(frame: pd.DataFrame, contract: str | None, width: int | None) -> BoolArray:
    """Which rows have features of a contract and width: a mask, (n,)."""
    keys = [_key(frame["features"], frame["feature_contract"], i) for i in range(len(frame))]
    return np.array([key == (contract, width) for key in keys], dtype=bool)


def _key(features: pd.Series, contracts: pd.Series, i: int) -> tuple[str, int] | None:
    row, contract = features.iat[i], contracts.iat[i]
    if row is None or not isinstance(contract, str) or not hasattr(row, "__len__") or not len(row):
        return None
    return contract, len(row)


def _reasons(counts: dict[str, int]) -> list[dict[str, Any]]:
    return [{"reason": reason, "rows": rows} for reason, rows in counts.items() if rows]
