"""Compare today's answers with the goldens, to the bit: ``python tests/goldens/check.py [PART]``.

Prints a line a part and one for each array that differs; the exit status is 1 if any does.
"""

from __future__ import annotations

import sys

import numpy as np
from record import HERE, PARTS


def differences(golden: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> list[str]:
    """What differs, an array a line; those of a pack that is not installed are gone."""
    found = [f"{key}: new" for key in now.keys() - golden.keys()]
    for key, want in golden.items():
        got = now.get(key)
        if got is None:
            found.append(f"{key}: gone")
        elif got.shape != want.shape or got.dtype != want.dtype:
            found.append(f"{key}: {want.dtype}{want.shape} is now {got.dtype}{got.shape}")
        elif got.tobytes() != want.tobytes():
            unlike = np.flatnonzero((got != want).ravel())
            found.append(
                f"{key}: {len(unlike)} of {want.size} values differ, first at {unlike[:1]}"
            )
    return sorted(found)


def main(names: list[str]) -> int:
    """Check the parts named, all of them without a name."""
    wrong = 0
    for name in names or PARTS:
        with np.load(HERE / f"{name}.npz") as stored:
            golden = dict(stored)
        now = {key: np.asarray(value) for key, value in PARTS[name]().items()}
        found = differences(golden, now)
        wrong += bool(found)
        print(f"{name}: {len(golden)} arrays, {len(found)} differ")
        for line in found:
            print(f"  {line}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
