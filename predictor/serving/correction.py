"""Follow a served model that talks longer or shorter, or less predictably, than the one trained on.

Every finished request tells by how much its length missed the predicted median, in log-tokens,
and how far out in the predicted 80 % interval it fell. Running figures of these per class, drawn
towards those over all classes and then towards "nothing has changed", shift and stretch the next
predictions:

    r     = log y - log q_.5                 z = r / (log q_.9 - log q_.1)
    m_c   = median of the class's last r     s_c = 80 % spread of the class's last z, 1 if right
    shift = w_c m_c + (1 - w_c) w m          log stretch = w_c log s_c + (1 - w_c) w log s
    w     = k / (k + prior_rows)

Medians and quantiles are moved as far by one runaway answer as by any other, so tails do not
drag them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

import numpy as np

from lengthwise.predictor.distribution import Floats, LengthDistribution
from lengthwise.predictor.serving.ranked import Ranked

MOST_CLASSES = 64  # names come from clients; later ones follow the figures over all classes
_LEAST_FOR_SPREAD = 20
_MOST_STRETCH = float(np.log(4.0))


class _Recent:
    """The last `window` misses, and their median and spread, computed when asked for."""

    def __init__(self, window: int) -> None:
        self.misses: deque[tuple[float, float | None]] = deque()
        self._window = window
        self._ratios, self._places = Ranked(), Ranked()
        self._figures: tuple[float, float] | None = None

    def add(self, ratio: float, place: float | None) -> None:
        self.misses.append((ratio, place))
        self._ratios.add(ratio)
        if place is not None:
            self._places.add(place)
        if len(self.misses) > self._window:
            ratio, place = self.misses.popleft()
            self._ratios.remove(ratio)
            if place is not None:
                self._places.remove(place)
        self._figures = None

    @property
    def figures(self) -> tuple[float, float]:
        """Median of the log-ratios, and log of the spread of the places."""
        if self._figures is None:
            stretch = 0.0
            if len(self._places) >= _LEAST_FOR_SPREAD:
                spread = self._places.quantile(0.9) - self._places.quantile(0.1)
                stretch = float(np.log(max(spread, 1e-3)))
            self._figures = self._ratios.median(), stretch
        return self._figures


class OnlineCorrection:
    """Running median and spread of true against predicted length, by class.

    Parameters
    ----------
    window : int
        Finished requests remembered, per class and over all: fewer follow drift sooner and
        waver more.
    prior_rows : float
        So many finished requests weigh as much as the belief that nothing has changed.
    limit : float
        Largest shift, log-tokens.
    """

    def __init__(self, window: int = 200, prior_rows: float = 20.0, limit: float = 2.0) -> None:
        if window < 1 or prior_rows <= 0 or limit <= 0:
            raise ValueError(
                f"window, prior_rows, limit must be positive, got {window}, {prior_rows}, {limit}"
            )
        self.window = window
        self.prior_rows = prior_rows
        self.limit = limit
        self._all = _Recent(window)
        self._by_class: dict[str, _Recent] = {}

    def update(
        self,
        predicted: Sequence[float],
        output_tokens: float,
        slo_class: str | None = None,
        censored: bool = False,
    ) -> None:
        """Learn from one finished request.

        `predicted` are its .1, .5 and .9 quantiles before correction. A censored answer that was
        not yet longer than expected says nothing and is passed by.
        """
        low, middle, high = (float(value) for value in predicted)
        if not (1.0 <= low <= middle <= high and output_tokens >= 1.0):
            raise ValueError(
                f"lengths must be at least 1 and quantiles in order, got {predicted}, "
                f"{output_tokens}"
            )
        ratio = float(np.log(output_tokens / middle))
        if censored and ratio < self.shift(slo_class):
            return
        place = float(ratio / np.log(high / low)) if high > low and not censored else None
        self._all.add(ratio, place)
        name = slo_class or ""
        if name not in self._by_class and len(self._by_class) < MOST_CLASSES:
            self._by_class[name] = _Recent(self.window)
        if name in self._by_class:
            self._by_class[name].add(ratio, place)

    def shift(self, slo_class: str | None = None) -> float:
        """What to add to log-length for a class, log-tokens."""
        return min(max(self._figure(0, slo_class), -self.limit), self.limit)

    def stretch(self, slo_class: str | None = None) -> float:
        """The factor on a class's distances from the median, in log-tokens."""
        return float(np.exp(min(max(self._figure(1, slo_class), -_MOST_STRETCH), _MOST_STRETCH)))

    def learned(self) -> dict[str, float]:
        """The factor on predicted lengths by class seen so far."""
        return {name: float(np.exp(self.shift(name))) for name in sorted(self._by_class)}

    def correct(self, quantiles: Floats, levels: Floats, slo_class: str | None) -> Floats:
        """Corrected quantiles of one request, (q,), at least one token."""
        middle = np.log(at_level(0.5, levels, quantiles))
        logs = middle + self.stretch(slo_class) * (np.log(quantiles) - middle)
        return np.exp(np.maximum(logs + self.shift(slo_class), 0.0))

    def apply(
        self, predicted: LengthDistribution, slo_class: Sequence[str | None]
    ) -> LengthDistribution:
        """The corrected distributions; caps are kept."""
        rows = [
            self.correct(row, predicted.levels, name)
            for row, name in zip(predicted.quantiles, slo_class, strict=True)
        ]
        quantiles = np.stack(rows) if rows else predicted.quantiles
        return LengthDistribution.from_rows(predicted.levels.tolist(), quantiles, predicted.cap)

    def _figure(self, which: int, slo_class: str | None) -> float:
        if not self._all.misses:
            return 0.0
        figure = self._weight(self._all) * self._all.figures[which]
        own = self._by_class.get(slo_class or "")
        if own is not None:
            weight = self._weight(own)
            figure = weight * own.figures[which] + (1.0 - weight) * figure
        return figure

    def _weight(self, recent: _Recent) -> float:
        rows = len(recent.misses)
        return rows / (rows + self.prior_rows)


def at_level(level: float, levels: Floats, quantiles: Floats) -> float:
    """What `numpy.interp` gives, without giving the interpreter's lock away.

    The engine's loop asks; once it lets go of the lock, a thread that computes keeps it for
    milliseconds.
    """
    grid = levels.tolist()
    after = bisect_left(grid, level)
    if after == len(grid) or (after == 0 and grid[0] > level):
        return float(quantiles[min(after, len(grid) - 1)])
    if grid[after] == level:
        return float(quantiles[after])
    low, high = float(quantiles[after - 1]), float(quantiles[after])
    slope = (high - low) / (grid[after] - grid[after - 1])
    return slope * (level - grid[after - 1]) + low
