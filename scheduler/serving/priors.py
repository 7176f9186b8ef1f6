"""Length quantiles inside the engine process: the request's own, else its class's, else anyone's.

The engine needs no predictor object: what it falls back to is plain numbers in the predictor
directory's ``card.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS, check_quantiles

# Without a predictor at all: a log-normal of median 200 tokens, sigma 1, at DEFAULT_LEVELS' scale.
_ANYONE_MEDIAN_TOKENS = 200.0
_ANYONE_SIGMA = 1.0
POOLED_CLASS = "*"  # the predictor card's key for all classes together


@dataclass(frozen=True, slots=True)
class LengthPriors:
    """Quantiles ``(q,)`` by class for the modes without a learned prediction.

    ``priors`` are the empirical quantiles of each class, ``gaussians`` those of a Gaussian per
    class (the paper's profile); the pooled row stands under ``POOLED_CLASS``.
    """

    levels: FloatArray
    priors: Mapping[str, FloatArray]
    gaussians: Mapping[str, FloatArray]

    def prior(self, slo_class: str) -> FloatArray:
        """Empirical quantiles of the class, else of all."""
        return self.priors.get(slo_class, self.priors[POOLED_CLASS])

    def gaussian(self, slo_class: str) -> FloatArray:
        """Gaussian quantiles of the class, else of all."""
        return self.gaussians.get(slo_class, self.gaussians[POOLED_CLASS])

    def pooled(self) -> FloatArray:
        """The same quantiles for every request."""
        return self.priors[POOLED_CLASS]


def load_priors(predictor_dir: Path | str | None) -> LengthPriors:
    """The priors of a predictor directory; without one, the same broad prior for all.

    Raises InputError when the card is missing or lacks its levels or class tables.
    """
    if predictor_dir is None:
        return generic_priors()
    path = Path(predictor_dir) / "card.json"
    card = read_object(path, "predictor card")
    try:
        levels = np.asarray(card["levels"], dtype=np.float64)
        return LengthPriors(
            levels,
            _rows(card["class_priors"], levels),
            _rows(card["class_gaussian"], levels),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a predictor card: {error!r}") from error


def generic_priors(levels: tuple[float, ...] = DEFAULT_LEVELS) -> LengthPriors:
    """One broad prior for every class."""
    from statistics import NormalDist

    normal = NormalDist(math.log(_ANYONE_MEDIAN_TOKENS), _ANYONE_SIGMA)
    row = np.exp([normal.inv_cdf(level) for level in levels])
    table = {POOLED_CLASS: row}
    return LengthPriors(np.asarray(levels), table, table)


def _rows(table: Mapping[str, Any], levels: FloatArray) -> dict[str, FloatArray]:
    rows: dict[str, FloatArray] = {}
    for slo_class, values in table.items():
        row = check_quantiles(values, len(levels))
        if row is None:
            raise ValueError(f"class {slo_class!r}: not {len(levels)} increasing quantiles")
        rows[slo_class] = row
    if POOLED_CLASS not in rows:
        raise ValueError("no pooled row")
    return rows
