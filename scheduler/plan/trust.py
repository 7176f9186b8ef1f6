"""Promises held to account: what a plan said would be met, against what was.

Every row a plan touches is promised a chance of meeting its objectives, and for each part of the
plan (slots given up, limits, the searched order) the chance that the same plan without that part
promised. When the row ends, the ledger of the part takes in both. A part has broken its promise
when, over the last rows,

    Σ(promised - met) > Σ(promised - promised without) + MARGIN·n + Z·sqrt(Σ p(1 - p))

that is when what came is worse than even its absence was said to be, and surely so; or when the
promises are wrong in either direction by more than TOLERANCE, because then the model that chose
the part knows nothing of this engine. A broken part is withdrawn, longer each time; in the
meantime the promises of plans without it go on being checked, and when these hold it returns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lengthwise.data.arrays import FloatArray

PARTS = ("slots", "limits", "order")
WINDOW = 256
LEAST = 96  # rows before anything is judged
Z = 3.0
TOLERANCE = 0.3
MARGIN = 0.1
FIRST_PROBATION_S = 30.0
LONGEST_PROBATION_S = 960.0


@dataclass(slots=True)
class _Ledger:
    """Promised, promised without the part, and met, of the last rows."""

    rows: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    until_s: float = -math.inf
    for_wrong: bool = False
    probation_s: float = FIRST_PROBATION_S

    def broken(self) -> bool:
        if len(self.rows) < LEAST:
            return False
        promised, without, met = np.array(self.rows).T
        noise = Z * math.sqrt(float((promised * (1.0 - promised)).sum()) + 0.02 * len(promised))
        short = float((promised - met).sum())
        gain = max(0.0, float((promised - without).sum()))
        return short > gain + MARGIN * len(promised) + noise

    def wrong(self) -> bool:
        if len(self.rows) < LEAST:
            return False
        promised, _, met = np.array(self.rows).T
        noise = Z * math.sqrt(float((promised * (1.0 - promised)).sum()) + 0.02 * len(promised))
        return abs(float((promised - met).sum())) > TOLERANCE * len(promised) + noise


class Trust:
    """The ledgers of all parts; rows are named by their arrival times."""

    def __init__(self) -> None:
        self._ledgers = {part: _Ledger() for part in PARTS}
        self._promises: dict[float, dict[str, tuple[float, float]]] = {}
        self._now_s = -math.inf

    def promise(
        self,
        now_s: float,
        arrival_s: FloatArray,
        chance: FloatArray,
        without: Mapping[str, FloatArray],
    ) -> None:
        """A plan promises ``chance (n,)``; ``without`` holds what it would without each part."""
        self._now_s = now_s
        for row, name in enumerate(arrival_s):
            known = self._promises.setdefault(float(name), {})
            for part, alternative in without.items():
                known.setdefault(part, (float(chance[row]), float(alternative[row])))

    def finished(self, arrival_s: float, met: bool) -> None:
        """A request ended, with all its objectives met or not."""
        for part, (promised, without) in self._promises.pop(arrival_s, {}).items():
            ledger = self._ledgers[part]
            ledger.rows.append((promised, without, float(met)))
            wrong = ledger.wrong()
            if self._now_s >= ledger.until_s and (wrong or ledger.broken()):
                ledger.for_wrong = wrong
                ledger.until_s = self._now_s + ledger.probation_s
                ledger.probation_s = min(2.0 * ledger.probation_s, LONGEST_PROBATION_S)
                ledger.rows.clear()

    def allows(self, part: str, now_s: float) -> bool:
        """Whether plans may have this part now."""
        return now_s >= self._ledgers[part].until_s

    def lost(self, now_s: float) -> bool:
        """Whether the order's promises were so wrong that no rule's can be believed either."""
        ledger = self._ledgers["order"]
        return now_s < ledger.until_s and ledger.for_wrong

    def status(self) -> dict[str, dict[str, float]]:
        """Of each part: promised and met shares of the last rows, seconds of withdrawal left."""
        found = {}
        for part, ledger in self._ledgers.items():
            rows = np.array(ledger.rows) if ledger.rows else np.zeros((0, 3))
            found[part] = {
                "rows": float(len(rows)),
                "promised": float(rows[:, 0].mean()) if len(rows) else math.nan,
                "without": float(rows[:, 1].mean()) if len(rows) else math.nan,
                "met": float(rows[:, 2].mean()) if len(rows) else math.nan,
                "withdrawn_s": max(0.0, ledger.until_s - self._now_s),
            }
        return found
