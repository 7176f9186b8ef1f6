"""Train, calibration and test by a hash of the group: no question is on two sides.

The side of a group depends on its name and the seed alone, so it is the same in every process,
for every table and whatever other rows are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lengthwise.data.errors import InputError, shown
from lengthwise.data.table import PromptTable, take_rows

SPLITS = {"train": 0.65, "calibration": 0.15, "test": 0.20}


def split_of(groups: Sequence[str], seed: int = 0) -> NDArray[np.str_]:
    """The side of each group: (n,) of "train" | "calibration" | "test"."""
    side_of = {group: _side(group, seed) for group in set(groups)}
    return np.array([side_of[group] for group in groups], dtype="<U11")


def split_table(table: PromptTable, seed: int = 0) -> dict[str, PromptTable]:
    """The table's rows by side; a side may be empty when there are few groups."""
    sides = split_of(list(table["group"]), seed)
    return {side: take_rows(table, sides == side) for side in SPLITS}


def _side(group: str, seed: int) -> str:
    if not isinstance(group, str) or not group:
        raise InputError(f"a group must be text, got {shown(group)}")
    digest = hashlib.blake2b(
        f"{seed}:{group}".encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    position = int.from_bytes(digest, "big") / 2.0**64
    for side, share in SPLITS.items():
        if position < share:
            return side
        position -= share
    return "test"  # only float dust of the three shares can lead here
