"""A fitted Student t and networks as a server asks them: two compiled calls for a batch of rows.

The parts one by one take some forty calls of numpy's, which cost a single row more than its trees
and networks do. The numbers are the same, to the bit: sums are made in the same order, and
exponentials are numpy's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.data.arrays import njit
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.hazard import read_quantiles
from lengthwise.predictor.estimators.nets import MLPHazardRegressor, run_nets, standard_scores
from lengthwise.predictor.estimators.one_block import in_one_block
from lengthwise.predictor.estimators.packed_trees import add_leaves, fill_keys, pack_trees
from lengthwise.predictor.estimators.student import (
    LOG_SCALE_LIMITS,
    LGBMLengthRegressor,
    spread,
    student_quantiles,
)


@dataclass(frozen=True, eq=False)
class PackedBlend:
    """What a prediction reads of both parts; `numbers` are the arrays in the order of `_score`."""

    student: LGBMLengthRegressor
    nets: MLPHazardRegressor
    room: int
    numbers: tuple[NDArray[np.generic], ...]

    @classmethod
    def of(cls, student: LGBMLengthRegressor, nets: MLPHazardRegressor) -> PackedBlend | None:
        """Of fitted parts; None where their trees cannot be packed."""
        trees = pack_trees(student.trees_)
        if trees is None:
            return None
        numbers = in_one_block(
            trees.nodes, trees.roots, trees.leaf_starts, trees.leaves, student.start_,
            nets.center_, nets.per_spread_,
            nets.w1_, nets.b1_, nets.w2_, nets.b2_, nets.w3_, nets.b3_,
        )  # fmt: skip
        return cls(student, nets, trees.room, numbers)

    def log_quantiles(self, X: NDArray[np.float32], levels: Floats, net_share: float) -> Floats:
        """Log-tokens at the levels, (n, q), of rows in single precision, (n, f)."""
        student, edges = self.student, self.nets.edges_
        scores = np.empty((len(X), 1 + edges.size))
        _score(np.ascontiguousarray(X), self.room, *self.numbers, scores)
        out = np.empty((len(X), len(levels)))
        standard = student_quantiles(student.dof, levels)
        exps = np.exp(scores[:, 1:])
        _read(scores, exps, standard, student.ceiling_, edges, levels, net_share, out)
        return out


@njit(nogil=True)
def _score(
    X: np.ndarray,
    room: int,
    nodes: np.ndarray,
    roots: np.ndarray,
    leaf_starts: np.ndarray,
    leaves: np.ndarray,
    start: np.ndarray,
    center: np.ndarray,
    per_spread: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    w3: np.ndarray,
    b3: np.ndarray,
    out: np.ndarray,
) -> None:
    """Location, log-scale, and minus the networks' mean log-odds of each bin, (n, 2 + b)."""
    nets, bins = b3.shape[0], b3.shape[2]
    scratch = np.empty(X.shape[1], np.float32)
    keys = np.zeros(max(room, X.shape[1]), np.int64)
    columns = np.empty((1, X.shape[1]), np.float32)
    first = np.empty(b1.size, np.float32)
    second = np.empty(w2.shape[2], np.float32)
    odds = np.empty((nets, bins))
    sums = np.empty(2)
    low, high = LOG_SCALE_LIMITS
    for row in range(X.shape[0]):
        unknown = fill_keys(X[row], scratch, keys)
        sums[:] = 0.0
        add_leaves(keys, unknown, nodes, roots, leaf_starts, leaves, sums)
        out[row, 0] = sums[0] + start[0]
        out[row, 1] = min(max(sums[1] + start[1], low), high)
        standard_scores(X[row : row + 1], center, per_spread, columns)
        run_nets(columns[0], w1, b1, w2, b2, w3, b3, first, second, odds)
        for at in range(bins):
            total = odds[0, at]
            for net in range(1, nets):
                total += odds[net, at]
            out[row, 2 + at] = -(total / nets)


@njit(nogil=True)
def _read(
    scores: np.ndarray,
    exps: np.ndarray,
    standard: np.ndarray,
    ceiling: float,
    edges: np.ndarray,
    levels: np.ndarray,
    net_share: float,
    out: np.ndarray,
) -> None:
    """Log-tokens at the levels, (n, q), of such scores; `exps` are of all but the location."""
    by_nets = np.empty((1, levels.size))
    for row in range(out.shape[0]):
        one = slice(row, row + 1)
        spread(scores[one, 0], exps[one, 0], standard, ceiling, out[one])
        read_quantiles(exps[one, 1:], edges, levels, by_nets)
        for q in range(levels.size):
            out[row, q] = (1.0 - net_share) * out[row, q] + net_share * by_nets[0, q]
