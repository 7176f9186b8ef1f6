"""Promises held to account: what a plan said would be met, against what was.

Every row a plan touches is promised a chance of meeting its objectives, and for each part of the
plan (slots given up, limits, the searched order) the chance that the same plan without that part
promised. When the row ends, the ledger of the part takes in both. A part has broken its promise
when, over the last rows,

    Σ(promised - met) > Σ(promised - promised without) + (MARGIN + excused)·n + Z·sqrt(Σ p(1 - p))

that is when what came is worse than even its absence was said to be, and surely so; or when the
promises fall short by more than TOLERANCE, because then the model that chose the part knows
nothing of this engine. More than was promised breaks nothing: a plan made of lengths ten times too
long may promise little and still be the best there is. A broken part is withdrawn. What plans
without it were seen to promise too much, as plans do that are made again and again, is no fault of
the part: excused.

While it is, plans go on promising, and the ledger judges what the plan without the part promises:
it comes of the same model and it is carried out, so it can be held against the facts. The part
returns, after a least time, when these promises hold:

    Σ(promised - met) ≤ MARGIN·n + HOLD_Z·sqrt(Σ p(1 - p))

or when they fall as short as the part's own did, which was then not to blame. Where too few rows
say anything (nobody comes, or nobody was given a chance) the least time alone decides. It doubles
when a part breaks its promises soon after its return, and is the first one again when the part
has kept them over a whole window. Promises that never hold keep a part away for PATIENCE times
the least time.
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
HOLD_Z = 2.0
TOLERANCE = 0.3
MARGIN = 0.1
LITTLE = 0.1  # a promise below this says nothing where it is not met
RECENT = 128  # rows that say how short the promises fall now
MOST_PROMISES = 50_000
LEAST_AWAY_S = 30.0
LONGEST_LEAST_S = 480.0
PATIENCE = 8.0  # times the least time, and a part is tried again whatever the promises


@dataclass(slots=True)
class _Ledger:
    """Promised, promised without the part, and met, of the last rows since ``since_s``.

    ``since_s`` is when the part was withdrawn or came back. While it is withdrawn both promises
    are those of the plan that goes without it.
    """

    rows: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    since_s: float = -math.inf
    withdrawn: bool = False
    for_wrong: bool = False
    least_away_s: float = LEAST_AWAY_S
    fell_short: float = 0.0  # share of its promises, when it was withdrawn
    excused: float = 0.0  # share that plans without it fell short by

    def verdict(self) -> tuple[bool, bool]:
        """(whether the promises were plainly wrong, whether the part broke its own)."""
        n = len(self.rows)
        if n < LEAST:
            return False, False
        promised, without, met = np.array(self.rows).T
        noise = Z * _scatter(promised)
        short = float((promised - met).sum())
        gain = max(0.0, float((promised - without).sum()))
        allowed = gain + (MARGIN + self.excused) * n + noise
        return short > TOLERANCE * n + noise, short > allowed

    def withdraw(self, now_s: float, for_wrong: bool) -> None:
        promised, _, met = np.array(self.rows).T
        self.fell_short = float((promised - met).mean())
        self.withdrawn, self.for_wrong, self.since_s = True, for_wrong, now_s
        self.rows.clear()

    def take_back(self, now_s: float) -> None:
        promised, met = self._telling()
        if len(met) >= LEAST:
            self.excused = float(np.clip((promised - met).mean(), 0.0, TOLERANCE))
        self.withdrawn, self.since_s = False, now_s
        self.least_away_s = min(2.0 * self.least_away_s, LONGEST_LEAST_S)
        self.rows.clear()

    def away_s(self, now_s: float) -> float:
        """The most seconds of withdrawal that are left."""
        if not self.withdrawn or self._may_return(now_s):
            return 0.0
        return self.since_s + PATIENCE * self.least_away_s - now_s

    def _may_return(self, now_s: float) -> bool:
        away_s = now_s - self.since_s
        if not 0.0 <= away_s < PATIENCE * self.least_away_s:
            return True  # a clock that stepped back, too
        if away_s < self.least_away_s:
            return False
        promised, met = self._telling()
        n = len(met)
        if n < LEAST:
            return True
        short = float((promised - met).sum())
        if not self.for_wrong and short >= (self.fell_short - MARGIN) * n:
            return True
        return short <= MARGIN * n + HOLD_Z * _scatter(promised)

    def _telling(self) -> tuple[FloatArray, FloatArray]:
        """Promised and met of the rows that say anything."""
        rows = [(promised, met) for promised, _, met in self.rows if promised > LITTLE or met]
        promised, met = np.array(rows).reshape(-1, 2).T
        return promised, met


def _scatter(promised: FloatArray) -> float:
    """Standard deviation of how many of the promised are met, their errors not all alike."""
    return math.sqrt(float((promised * (1.0 - promised)).sum()) + 0.02 * len(promised))


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
        """A plan promises ``chance (n,)``; ``without`` holds what it would without each part.

        Of a part that is withdrawn, whose plan this is not, the promise counts as made without it.
        """
        self._now_s = now_s
        for part, ledger in self._ledgers.items():
            if ledger.withdrawn and self.allows(part, now_s):
                ledger.take_back(now_s)
                self._forget(part)
        away = [part for part, ledger in self._ledgers.items() if ledger.withdrawn]
        alternatives = {**without, **dict.fromkeys(away, chance)}
        for row, name in enumerate(arrival_s):
            if name in self._lost:
                continue
            known = self._promises.setdefault(float(name), {})
            for part, alternative in alternatives.items():
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
            if ledger.withdrawn:
                continue
            wrong, broken = ledger.verdict()
            if wrong or broken:
                ledger.withdraw(self._now_s, wrong)
                self._forget(part)
            elif len(ledger.rows) == WINDOW:
                ledger.least_away_s = LEAST_AWAY_S

    def _forget(self, part: str) -> None:
        """What was promised before the part was withdrawn or came back says nothing after it."""
        for promised in self._promises.values():
            promised.pop(part, None)

    def allows(self, part: str, now_s: float) -> bool:
        """Whether plans may have this part now."""
        return self._ledgers[part].away_s(now_s) == 0.0

    def status(self, now_s: float) -> dict[str, dict[str, float | None]]:
        """Of each part: promised and met shares of the last rows, and ``withdrawn_s``, the most
        seconds of its withdrawal that are left."""
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
                "withdrawn_s": ledger.away_s(now_s),
            }
        return found
