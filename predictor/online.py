"""Follow a served model that talks longer or shorter than the one trained on.

Every finished request tells by how much its length missed the predicted median, in log-tokens.
A running median of these per class, drawn towards the one over all classes and then towards
zero, shifts the next predictions:

    r     = log y - log q_.5
    m_c   = median of the class's last `window` values of r
    shift = w_c m_c + (1 - w_c) w m,    w = k / (k + prior_rows)

A median is moved as far by one runaway answer as by any other, so tails do not drag it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from predictor.distribution import LengthDistribution

MOST_CLASSES = 64  # names come from clients; later ones follow the median over all classes


class _RecentMedian:
    """Median of the last `window` values, computed when asked for."""

    def __init__(self, window: int, values: Iterable[float] = ()) -> None:
        self.values: deque[float] = deque(values, maxlen=window)
        self._median: float | None = None

    def add(self, value: float) -> None:
        self.values.append(value)
        self._median = None

    @property
    def median(self) -> float:
        if self._median is None:
            self._median = float(np.median(self.values)) if self.values else 0.0
        return self._median


class OnlineCorrection:
    """Running log-ratio of true to predicted length, by class.

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
        self._all = _RecentMedian(window)
        self._by_class: dict[str, _RecentMedian] = {}

    def update(
        self,
        predicted_median: float,
        output_tokens: float,
        slo_class: str | None = None,
        censored: bool = False,
    ) -> None:
        """Learn from one finished request; `predicted_median` is the prediction before correction.

        A censored answer below its predicted median says nothing about the ratio and is passed by.
        """
        if not (predicted_median >= 1.0 and output_tokens >= 1.0):
            raise ValueError(f"lengths must be at least 1, got {predicted_median}, {output_tokens}")
        ratio = float(np.log(output_tokens / predicted_median))
        if censored and ratio < self.shift(slo_class):
            return
        self._all.add(ratio)
        name = slo_class or ""
        if name not in self._by_class and len(self._by_class) < MOST_CLASSES:
            self._by_class[name] = _RecentMedian(self.window)
        if name in self._by_class:
            self._by_class[name].add(ratio)

    def shift(self, slo_class: str | None = None) -> float:
        """What to add to log-length for a class, log-tokens."""
        common = self._weight(self._all) * self._all.median
        own = self._by_class.get(slo_class or "")
        if own is not None:
            weight = self._weight(own)
            common = weight * own.median + (1.0 - weight) * common
        return float(np.clip(common, -self.limit, self.limit))

    def _weight(self, recent: _RecentMedian) -> float:
        rows = len(recent.values)
        return rows / (rows + self.prior_rows)

    def learned(self) -> dict[str, float]:
        """The factor on predicted lengths by class seen so far."""
        return {name: float(np.exp(self.shift(name))) for name in sorted(self._by_class)}

    def apply(
        self, predicted: LengthDistribution, slo_class: Sequence[str | None]
    ) -> LengthDistribution:
        """The corrected distributions: every quantile times exp(shift), caps kept."""
        factors = np.exp([self.shift(name) for name in slo_class])[:, None]
        return LengthDistribution.from_rows(
            predicted.levels.tolist(), predicted.quantiles * factors, predicted.cap
        )

    def to_json(self) -> dict[str, object]:
        """State as plain numbers, for a server that restarts."""
        return {
            "all": list(self._all.values),
            "by_class": {name: list(recent.values) for name, recent in self._by_class.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state written by `to_json`."""
        self._all = _RecentMedian(self.window, state["all"])
        self._by_class = {
            name: _RecentMedian(self.window, values) for name, values in state["by_class"].items()
        }
