"""One LightGBM booster over log-spaced length bins: the chance to end in a bin once it is reached.

A training row becomes one row for every bin its answer reached, with the bin as one more
column and "ended here" as label (a discrete-time survival model). Survival is the running
product of 1 - hazard, so quantiles cannot cross, and a cut answer simply contributes no end.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from lengthwise.data.arrays import njit
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.boosting import BoosterRegressor, check_rows
from lengthwise.predictor.estimators.folded import FoldedRegressor

_TAIL_SHARES = (0.005, 0.01, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998)


@dataclass(eq=False, repr=False)
class LGBMHazardRegressor(FoldedRegressor, BoosterRegressor):
    """Hazard over `bins` bins with edges at quantiles of the training lengths, finer in the tails.

    Inside a bin log-length is taken as uniform. Other parameters as in `BoosterRegressor`.
    """

    learned = ("edges", "members")

    n_estimators: int = 250
    num_leaves: int = 31
    min_child_samples: int = 40
    feature_fraction: float = 0.5
    bins: int = 20

    def _fit(
        self,
        X: Floats,
        log_y: Floats,
        weight: Floats,
        censored: NDArray[np.bool_],
        fold: NDArray[np.intp] | None = None,
    ) -> None:
        check_rows(X)
        self.edges_ = bin_edges(log_y, self.bins)
        last, reached = bins_lived(log_y, censored, self.edges_)
        rows = np.repeat(np.arange(log_y.size), reached)
        bins = np.concatenate([np.arange(count) for count in reached]) if rows.size else rows
        ended = (bins == last[rows]) & ~censored[rows]
        design = np.column_stack((X[rows], bins)).astype(np.float32)
        data = lgb.Dataset(
            design, ended, weight=weight[rows], params=self._booster_parameters(design.shape)
        )
        of_row = None if fold is None else fold[rows]
        self._train(data, design.shape, lambda _: {"objective": "binary"}, of_row)

    def importances(self) -> Floats:
        """As in `LengthRegressor`; the column that counts the bins is left out."""
        gain = super().importances()[:-1]
        return gain / max(gain.sum(), 1e-12)

    def scores(self, X: NDArray[np.floating]) -> Floats:
        """Log-odds to end in each bin once it is reached, (n, bins)."""
        return self.trees_.predict_over_last(X, self.edges_.size - 1)

    def held_out_scores(self, X: NDArray[np.floating], fold: NDArray[np.intp]) -> Floats:
        """`scores` of training rows, (n, bins), each by the member that left out its fold."""
        out = np.empty((len(X), self.edges_.size - 1))
        for k, trees in enumerate(self._member_trees()):
            out[fold == k] = trees.predict_over_last(X[fold == k], out.shape[1])
        return out

    def quantiles_of(self, scores: Floats, levels: Floats) -> Floats:
        """Log-tokens at the levels, (n, q), of such scores."""
        return hazard_log_quantiles(scores, self.edges_, levels)


def bin_edges(log_y: Floats, bins: int) -> Floats:
    """Edges, (b + 1,), of bins that hold equal shares of the log-lengths, finer in the tails."""
    shares = np.union1d(np.linspace(0.0, 1.0, bins + 1), _TAIL_SHARES)
    edges = np.unique(np.quantile(log_y, shares))
    return edges if edges.size > 1 else np.array([edges[0] - 1e-3, edges[0] + 1e-3])


def bins_lived(
    log_y: Floats, censored: NDArray[np.bool_], edges: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The bin each length falls in, (n,), and how many bins it reached whose end is known, (n,).

    A cut answer did not live to the end of its last bin.
    """
    last = np.clip(np.searchsorted(edges, log_y, side="left") - 1, 0, len(edges) - 2)
    return last, last + 1 - censored


def hazard_log_quantiles(scores: Floats, edges: Floats, levels: Floats) -> Floats:
    """Log-odds to end in each bin once it is reached, (n, b), to log-tokens at levels, (n, q)."""
    out = np.empty((len(scores), len(levels)))
    read_quantiles(np.exp(-scores), edges, levels, out)
    return out


@njit(nogil=True)
def read_quantiles(
    odds: np.ndarray, edges: np.ndarray, levels: np.ndarray, out: np.ndarray
) -> None:
    """Log-tokens at the levels, (n, q), from the odds to live through each bin, (n, bins).

    `np.interp` over the chance to have ended by each edge, which is 1 at the last.
    """
    last = edges.size - 1
    ended = np.zeros(edges.size)
    for row in range(odds.shape[0]):
        alive = 1.0
        for at in range(last):
            alive *= 1.0 - (1.0 / (1.0 + odds[row, at]) if at + 1 < last else 1.0)
            ended[at + 1] = 1.0 - alive
        for q in range(levels.size):
            level = levels[q]
            at = 0
            while at < last and ended[at + 1] <= level:
                at += 1
            if at == last or ended[at] == level:
                out[row, q] = edges[at]
            else:
                slope = (edges[at + 1] - edges[at]) / (ended[at + 1] - ended[at])
                out[row, q] = slope * (level - ended[at]) + edges[at]
