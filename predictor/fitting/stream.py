"""Train on more rows than memory holds: features go to a file, LightGBM bins them from there.

What stays in memory is one byte a feature and row (the bins), a few floats a row (lengths and
gradients), and bounded samples for calibration and test. The Student-t booster is used, for the
hazard would see every row once for each bin it lives through.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd

from lengthwise.data.errors import InputError
from lengthwise.data.splits import split_table
from lengthwise.data.table import texts_sha256
from lengthwise.predictor.estimators.student import LGBMLengthRegressor
from lengthwise.predictor.fitting.fit import (
    censored_rows,
    check_contract,
    logged_features,
    make_card,
)
from lengthwise.predictor.fitting.held_out import HeldOut, conformal_levels
from lengthwise.predictor.model import LengthPredictor

HELD_OUT_ROWS = 20_000
_LIST_ROWS = 65_536
_KEPT = [
    *("prompt", "features", "prompt_tokens", "output_tokens"),
    *("censored", "slo_class", "source", "task"),
]


def fit_stream(
    base: LengthPredictor,
    batches: Iterable[pd.DataFrame],
    *,
    seed: int = 0,
    held_out_rows: int = HELD_OUT_ROWS,
    scratch: Path | None = None,
    **params: Any,
) -> tuple[LengthPredictor, dict[str, pd.DataFrame]]:
    """A predictor that keeps `base`'s features, and samples of the calibration and test sides.

    `batches` are prompt tables with `features` (`data.request_log.log_batches`); rows are split by
    group as everywhere. The file of features lies under `scratch`. InputError where a row's
    feature contract is another's, or nothing is left to train on.
    """
    samples = {side: _Sample(held_out_rows, seed) for side in ("calibration", "test")}
    parts: list[pd.DataFrame] = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "features.f32"
        with path.open("wb") as file:
            for batch in batches:
                check_contract(base, batch)
                sides = split_table(batch, seed=seed)
                for side, sample in samples.items():
                    sample.add(sides[side])
                if len(sides["train"]):
                    logged_features(sides["train"]).tofile(file)
                    parts.append(_without_features(sides["train"]))
        held_out = {side: sample.rows for side, sample in samples.items() if len(sample.rows)}
        if not parts or len(held_out) < len(samples):
            raise InputError("the log holds too few rows to split")
        train = _joined(parts)
        model = _fit_file(path, train, seed, params)
    rows = held_out["calibration"]
    levels = conformal_levels(model, logged_features(rows), HeldOut.of(rows), params)
    name = "lightgbm_student"
    card = make_card(train, name, name, model, base.prompt_features)
    return LengthPredictor(base.prompt_features, model, levels, card), held_out


class RowFile(lgb.Sequence):
    """Float32 rows in a file, handed to LightGBM piece by piece; none stays in memory."""

    batch_size = _LIST_ROWS

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self._count = rows
        self._columns = path.stat().st_size // (4 * rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._count)
            return self._read(start, stop - start)[::step]
        if isinstance(index, list):
            return np.concatenate([self._read(row, 1) for row in index])
        return self._read(int(index), 1)[0]

    def _read(self, start: int, rows: int) -> np.ndarray:
        count = rows * self._columns
        offset = 4 * start * self._columns
        piece = np.fromfile(self._path, np.float32, count, offset=offset)
        return piece.reshape(rows, self._columns).astype(np.float64)


class _Sample:
    """An even sample of at most `size` rows of a stream: those with the smallest random keys."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.rows = pd.DataFrame()
        self._rng = np.random.default_rng(seed)

    def add(self, table: pd.DataFrame) -> None:
        if not len(table):
            return
        keyed = table[_KEPT].assign(key=self._rng.random(len(table)))
        joined = pd.concat([self.rows, keyed], ignore_index=True) if len(self.rows) else keyed
        self.rows = joined.nsmallest(self.size, "key").reset_index(drop=True)


def _without_features(table: pd.DataFrame) -> pd.DataFrame:
    part = table[["output_tokens", "censored", "slo_class", "model"]].copy()
    for name in ("slo_class", "model"):
        part[name] = part[name].astype("category")
    part.attrs = dict(table.attrs)
    return part


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    train = pd.concat(parts, ignore_index=True)
    for name in ("slo_class", "model"):
        train[name] = train[name].astype("category")
    digests = [str(part.attrs.get("data_sha256")) for part in parts]
    train.attrs = parts[0].attrs | {"data_sha256": texts_sha256(digests)}
    return train


def _fit_file(
    path: Path, train: pd.DataFrame, seed: int, params: dict[str, Any]
) -> LGBMLengthRegressor:
    log_y = np.log(np.maximum(train["output_tokens"].to_numpy(np.float64), 1.0))
    model = LGBMLengthRegressor(**{"n_estimators": 200, "random_state": seed} | params)
    model.fit_file(RowFile(path, len(train)), log_y, censored_rows(train))
    return model
