"""Promises held to account: what a plan said would be met, against what was.

Every row a plan touches is promised a chance of meeting its objectives, and for each part of the
plan (slots given up, limits, the searched order) the chance that the same plan without that part
promised. When the row ends, the ledger of the part takes in both. A part has broken its promise
when, over the last rows,

    Σ(promised - met) > Σ(promised - promised without) + MARGIN·n + Z·sqrt(Σ p(1 - p))

that is when what came is worse than even its absence was said to be, and surely so; or when the
promises are wrong in either direction by more than TOLERANCE, because then the model that chose
the part knows nothing of this engine. A broken part is withdrawn for a while, longer each time.
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
RECENT = 128  # rows that say how short the promises fall now
MOST_PROMISES = 50_000
FIRST_PROBATION_S = 30.0
LONGEST_PROBATION_S = 960.0


@dataclass(slots=True)
class _Ledger:
    """Promised, promised without the part, and met, of the last rows."""

    rows: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    until_s: float = -math.inf
    for_wrong: bool = False
    probation_s: float = FIRST_PROBATION_S

    def verdict(self) -> tuple[bool, bool]:
        """(whether the promises were wrong, whether the part broke its own)."""
        n = len(self.rows)
        if n < LEAST:
            return False, False
        promised, without, met = np.array(self.rows).T
        noise = Z * math.sqrt(float((promised * (1.0 - promised)).sum()) + 0.02 * n)
        short = float((promised - met).sum())
        gain = max(0.0, float((promised - without).sum()))
        return abs(short) > TOLERANCE * n + noise, short > gain + MARGIN * n + noise


class Trust:
    """The ledgers of all parts; rows are named by their arrival times."""

    def __init__(self) -> None:
        self._ledgers = {part: _Ledger() for part in PARTS}
        self._promises: dict[float, dict[str, tuple[float, float]]] = {}
        self._lost: dict[float, None] = {}  # judged before their end
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
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
            if name in self._lost:
                continue
            known = self._promises.setdefault(float(name), {})
            for part, alternative in without.items():
                known.setdefault(part, (float(chance[row]), float(alternative[row])))
        while len(self._promises) > MOST_PROMISES:
            self._promises.pop(next(iter(self._promises)))

    def lose(self, arrival_s: FloatArray) -> None:
        """Requests whose objectives can no longer be met: no need to wait for their end."""
        for name in arrival_s.tolist():
            if name not in self._lost:
                self._lost[name] = None
                self._judge(name, False)
        while len(self._lost) > MOST_PROMISES:
            self._lost.pop(next(iter(self._lost)))

    def shortfall(self) -> float:
        """Share of what was promised lately that did not come, 0 to 1."""
        if len(self._recent) < LEAST // 3:
            return 0.0
        promised, met = np.array(self._recent).sum(axis=0)
        return float(max(0.0, 1.0 - met / promised)) if promised > 0 else 0.0

    def finished(self, arrival_s: float, met: bool) -> None:
        """A request ended, with all its objectives met or not."""
        if arrival_s in self._lost:
            del self._lost[arrival_s]
        else:
            self._judge(arrival_s, met)

    def _judge(self, arrival_s: float, met: bool) -> None:
        for part, (promised, without) in self._promises.pop(arrival_s, {}).items():
            ledger = self._ledgers[part]
            ledger.rows.append((promised, without, float(met)))
            if part == "order":
                self._recent.append((promised, float(met)))
            if self._now_s < ledger.until_s:
                continue
            wrong, broken = ledger.verdict()
            if wrong or broken:
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

    def status(self, now_s: float) -> dict[str, dict[str, float | None]]:
        """Of each part: promised and met shares of the last rows, seconds of withdrawal left."""
        found: dict[str, dict[str, float | None]] = {}
        for part, ledger in self._ledgers.items():
            shares: list[float | None] = [None, None, None]
            if ledger.rows:
                shares = np.array(ledger.rows).mean(axis=0).tolist()
            found[part] = {
                "rows": float(len(ledger.rows)),
                "promised": shares[0],
                "without": shares[1],
                "met": shares[2],
                "withdrawn_s": max(0.0, ledger.until_s - now_s),
            }
        return found
