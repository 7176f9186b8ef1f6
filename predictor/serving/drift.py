"""Does the predictor still know its served model? Two monitors, per class and over all.

Both see what the predictor itself said, before the online correction (`correction`) mends it.

1. *Length*, r = log(actual / predicted median): a median of the last requests beyond a threshold,
   when an exact sign test says that it is no accident. Two windows: the newest few tell a large
   change soon, by a stricter test since they are drawn anew more often; all of them tell a small
   one, and what was wrong from the start.
2. *Coverage* of the 80 % interval: an exact binomial test over the last requests against the
   nominal level and a tolerance, as no class of a new predictor has its level exactly.

An alarm ends by itself when its window is good again, by a stricter measure than the one that
raised it. A request bears on a monitor only if its ``max_tokens`` left room to tell, which is
known before its answer starts: cut answers then bias nothing, and one that was cut is known to
lie beyond every threshold.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy.special import bdtr, bdtrc

from lengthwise.data.lengths import READING
from lengthwise.predictor.serving.correction import MOST_CLASSES
from lengthwise.predictor.serving.ranked import Ranked

Cause = Literal["level", "coverage"]
CAUSES: tuple[Cause, ...] = ("level", "coverage")
ALL_CLASSES = "*"

_ROOM = 2.0  # max_tokens over the predicted median from which a length can be judged
_FARTHEST = math.log(8.0)  # log-ratios beyond it count as it: one runaway is no change
_SWITCH_ROWS = 10  # so many rows in a row of another version make it the one watched


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """Thresholds; the defaults are what ``benchmarks/predictor/drift_alarms.py`` chose.

    ``level`` is a log-ratio; ``window``, ``newest`` and ``least_rows`` are finished requests;
    ``alpha`` is the two-sided error of one exact test, ``newest_alpha`` that of one on the newest,
    ``clear_alpha`` that at which a coverage alarm ends.
    """

    window: int = 200
    newest: int = 50
    least_rows: int = 100
    level: float = math.log(1.25)
    nominal: float = 0.8
    tolerance: float = 0.05
    alpha: float = 1e-4
    newest_alpha: float = 1e-6
    clear_alpha: float = 0.05

    def __post_init__(self) -> None:
        for name in ("newest", "least_rows"):
            if not 1 <= getattr(self, name) <= self.window:
                raise ValueError(
                    f"need 1 <= {name} <= window, got {getattr(self, name)}, {self.window}"
                )
        if not self.level > 0:
            raise ValueError(f"level must be positive, got {self.level}")
        if not 0 < self.nominal - self.tolerance <= self.nominal + self.tolerance < 1:
            raise ValueError(
                f"nominal +- tolerance leaves (0, 1): {self.nominal}, {self.tolerance}"
            )


@dataclass(frozen=True, slots=True)
class DriftAlarm:
    """One alarm: its cause, class (``*`` is all), since when (Unix seconds), and the figure.

    ``value`` is actual over predicted length for ``level``, a share for ``coverage``; as it was
    when the alarm was raised or ended.
    """

    cause: Cause
    slo_class: str
    since_unix_s: float
    value: float


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """An alarm raised or ended."""

    alarm: DriftAlarm
    raised: bool


class DriftMonitor:
    """Watches finished requests of one predictor version; O(log window) each, bounded memory."""

    def __init__(self, settings: DriftSettings | None = None) -> None:
        self.settings = settings or DriftSettings()
        self.version: str | None = None
        self._fresh = True
        self._strangers = 0
        self._streams: dict[str, _Stream] = {}
        self._start_streams()

    def update(
        self,
        predicted: Sequence[float],
        output_tokens: float,
        slo_class: str,
        now_unix_s: float,
        *,
        most_tokens: float = math.inf,
        cut: bool = False,
        version: str | None = None,
    ) -> list[DriftEvent]:
        """Learn from one finished request; what it raised or ended.

        ``predicted`` are its .1, .5 and .9 quantiles before correction, ``most_tokens`` its
        ``max_tokens``, ``cut`` says that it was stopped there. ValueError for lengths below 1 or
        quantiles out of order.
        """
        low, middle, high = predicted
        if not (1.0 <= low <= middle <= high < math.inf and 1.0 <= output_tokens < math.inf):
            raise ValueError(
                f"lengths must be finite, at least 1, quantiles in order, got {predicted}, "
                f"{output_tokens}"
            )
        events = self._of_version(version)
        if version != self.version:
            return events
        room = min(most_tokens, output_tokens) if cut else most_tokens
        ratio = math.log(output_tokens / middle) if room >= _ROOM * middle else None
        held = None
        if room > high * (1.0 + READING):  # else a cut answer might have ended inside too
            held = not cut and low <= output_tokens <= high
        for stream in self._of_class(slo_class):
            events += stream.add(ratio, held, now_unix_s)
        return events

    def reset(self) -> list[DriftEvent]:
        """Forget everything; every alarm ends."""
        ended = [DriftEvent(alarm, raised=False) for alarm in self.alarms]
        self._fresh = True
        self._start_streams()
        return ended

    @property
    def alarms(self) -> list[DriftAlarm]:
        """What is wrong now, over all first, then by class."""
        return [alarm for stream in self._streams.values() for alarm in stream.alarms.values()]

    def figures(self) -> dict[str, dict[str, Any]]:
        """The windows' figures by class, ``*`` for all; None where there are too few rows."""
        return {name: stream.figures() for name, stream in self._streams.items()}

    def _start_streams(self) -> None:
        self._streams.clear()
        self._streams[ALL_CLASSES] = _Stream(ALL_CLASSES, self.settings)

    def _of_version(self, version: str | None) -> list[DriftEvent]:
        """Follow the served version; answers of the old one still end after the new one came."""
        if version == self.version or self._fresh:
            self.version, self._fresh, self._strangers = version, False, 0
            return []
        self._strangers += 1
        if self._strangers < _SWITCH_ROWS:
            return []
        ended = self.reset()
        return ended + self._of_version(version)

    def _of_class(self, slo_class: str) -> Iterator[_Stream]:
        yield self._streams[ALL_CLASSES]
        own = self._streams.get(slo_class)
        if own is None and len(self._streams) <= MOST_CLASSES:
            own = self._streams[slo_class] = _Stream(slo_class, self.settings)
        if own is not None and slo_class != ALL_CLASSES:
            yield own


class _Window:
    """The last `size` values."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: deque[float] = deque()
        self._ranked = Ranked()

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        self._values.append(value)
        self._ranked.add(value)
        if len(self._values) > self._size:
            self._ranked.remove(self._values.popleft())

    def median(self) -> float:
        return self._ranked.median()

    def is_off(self, level: float, alpha: float) -> bool:
        """Whether the median is beyond the level and the signs say that it is no accident."""
        if abs(self.median()) <= level:
            return False
        least, most = binomial_limits(len(self), 0.5, 0.0, alpha)
        return not least <= self._ranked.above(0.0) <= most


class _Stream:
    """Both monitors of one class."""

    def __init__(self, name: str, settings: DriftSettings) -> None:
        self.name = name
        self.settings = settings
        self.alarms: dict[Cause, DriftAlarm] = {}
        self._ratios = _Window(settings.window)
        self._newest = _Window(settings.newest)
        self._held: deque[bool] = deque()
        self._held_count = 0
        self._rows = self._judged = 0

    def add(self, ratio: float | None, held: bool | None, now_unix_s: float) -> list[DriftEvent]:
        self._rows += 1
        self._judged += ratio is not None and held is not None
        events: list[DriftEvent] = []
        if ratio is not None:
            for window in (self._ratios, self._newest):
                window.add(max(-_FARTHEST, min(_FARTHEST, ratio)))
            self._judge_length(now_unix_s, events)
        if held is not None:
            self._add_held(held)
            self._judge_coverage(now_unix_s, events)
        return events

    def figures(self) -> dict[str, Any]:
        enough = self.settings.least_rows
        coverage = self._held_count / len(self._held) if len(self._held) >= enough else None
        ratio = math.exp(self._ratios.median()) if len(self._ratios) >= enough else None
        return {
            "rows": self._rows,
            "judged": self._judged,
            "actual_over_predicted": ratio,
            "coverage": coverage,
        }

    def _judge_length(self, now_unix_s: float, events: list[DriftEvent]) -> None:
        s, median = self.settings, self._ratios.median()
        if len(self._newest) == s.newest and self._newest.is_off(s.level, s.newest_alpha):
            self._raise("level", math.exp(self._newest.median()), now_unix_s, events)
        if len(self._ratios) < s.least_rows:
            return
        if self._ratios.is_off(s.level, s.alpha):
            self._raise("level", math.exp(median), now_unix_s, events)
        elif max(abs(median), abs(self._newest.median())) < s.level / 2:
            self._end("level", math.exp(median), events)

    def _add_held(self, held: bool) -> None:
        self._held.append(held)
        self._held_count += held
        if len(self._held) > self.settings.window:
            self._held_count -= self._held.popleft()

    def _judge_coverage(self, now_unix_s: float, events: list[DriftEvent]) -> None:
        s, rows = self.settings, len(self._held)
        if rows < s.least_rows:
            return
        share = self._held_count / rows
        least, most = binomial_limits(rows, s.nominal, s.tolerance, s.alpha)
        if not least <= self._held_count <= most:
            self._raise("coverage", share, now_unix_s, events)
            return
        least, most = binomial_limits(rows, s.nominal, s.tolerance, s.clear_alpha)
        if least <= self._held_count <= most:
            self._end("coverage", share, events)

    def _raise(
        self, cause: Cause, value: float, now_unix_s: float, events: list[DriftEvent]
    ) -> None:
        if cause not in self.alarms:
            self.alarms[cause] = DriftAlarm(cause, self.name, now_unix_s, value)
            events.append(DriftEvent(self.alarms[cause], raised=True))

    def _end(self, cause: Cause, value: float, events: list[DriftEvent]) -> None:
        alarm = self.alarms.pop(cause, None)
        if alarm is not None:
            ended = DriftAlarm(cause, self.name, alarm.since_unix_s, value)
            events.append(DriftEvent(ended, raised=False))


@lru_cache(maxsize=4096)
def binomial_limits(rows: int, nominal: float, tolerance: float, alpha: float) -> tuple[int, int]:
    """Least and most hits of ``rows`` that an exact two-sided test does not reject.

    The hypothesis is a share within ``tolerance`` of ``nominal``: each tail, at the nearer end of
    that band, must hold more than ``alpha / 2``.
    """
    hits = np.arange(rows + 1)
    low = bdtr(hits, rows, nominal - tolerance)  # P(at most so many)
    high = np.concatenate([[1.0], bdtrc(hits[:-1], rows, nominal + tolerance)])  # at least
    return int(np.argmax(low > alpha / 2)), int(rows - np.argmax(high[::-1] > alpha / 2))
