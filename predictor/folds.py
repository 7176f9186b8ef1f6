"""Folds of rows for what must be predicted by somebody who has not seen it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def grouped_folds(n: int, groups: Sequence[str] | None, folds: int, seed: int) -> NDArray[np.intp]:
    """A fold for each of n rows, the same for all rows of a group."""
    labels = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    count = labels.max() + 1
    return rng.permutation(np.arange(count) % min(folds, count))[labels]
