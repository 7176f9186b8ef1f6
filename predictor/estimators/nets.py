"""Small networks that say the chance to end in a bin once it is reached, in plain arrays.

    columns -> standard scores -> two hidden layers -> log-odds of each length bin

As `hazard` does, whose bins they share: any shape can be learned, such as answers that run to the
cap, and a cut answer contributes no end. A network sees a sum of columns where a tree sees steps,
so it errs apart from the Student-t booster and their mean errs less. Some networks are averaged;
trained with folds, each leaves one out, so that every row is predicted by a network that has not
seen it. AdamW on the likelihood, with dropout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from lengthwise.data.arrays import njit
from lengthwise.predictor.array_file import arrays_of
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.folded import FoldedRegressor
from lengthwise.predictor.estimators.hazard import bin_edges, bins_lived, hazard_log_quantiles

_FAR = 4.0  # standard scores beyond it are cut: an odd prompt must not carry a network away
_WEIGHTS = "weights.npz"
_ARRAYS = ("center", "per_spread", "w1", "b1", "w2", "b2", "w3", "b3")
_WARM_UP = 0.1  # share of the steps over which the rate rises

Floats32 = NDArray[np.float32]
Layers = list[Floats32]  # w1, b1, w2, b2, w3, b3, each with the networks as first axis


@dataclass(eq=False, repr=False)
class MLPHazardRegressor(FoldedRegressor):
    """The mean, in log-odds, of small networks over bins of log-length.

    Parameters
    ----------
    hidden : (int, int)
        Widths of the two hidden layers.
    bins : int
        As in `LGBMHazardRegressor`.
    nets : int
        How many networks, where no folds are given.
    epochs, batch_rows, learning_rate, weight_decay, dropout
        Of AdamW, whose rate rises and then falls to nothing along a cosine.
    random_state : int
    n_jobs : int
        Threads for training; prediction uses one.
    """

    learned = ("edges",)

    hidden: tuple[int, int] = (64, 32)
    bins: int = 20
    nets: int = 4
    epochs: int = 30
    batch_rows: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    random_state: int = 0
    n_jobs: int = 1

    def _fit(
        self,
        X: Floats,
        log_y: Floats,
        weight: Floats,
        censored: NDArray[np.bool_],
        fold: NDArray[np.intp] | None = None,
    ) -> None:
        if len(X) < 2:
            raise ValueError(f"a network needs at least 2 rows, got {len(X)} sample")
        self.edges_ = bin_edges(log_y, self.bins)
        self.center_, self.per_spread_ = _standardising(X)
        columns = np.empty(X.shape, np.float32)
        standard_scores(X, self.center_, self.per_spread_, columns)
        members = [np.arange(len(X))] * self.nets
        if fold is not None:
            members = [np.flatnonzero(fold != k) for k in range(fold.max() + 1)]
        last, reached = bins_lived(log_y, censored, self.edges_)
        bins = np.arange(self.edges_.size - 1)
        asked = (bins < reached[:, None]).astype(np.float32)
        ended = (bins == last[:, None]) & ~censored[:, None]
        weights = (weight / weight.mean()).astype(np.float32)[:, None]
        with threadpool_limits(self.n_jobs):
            self._train(columns, ended.astype(np.float32), asked * weights, members)

    def _train(
        self,
        columns: Floats32,
        ended: Floats32,
        asked: Floats32,
        members: list[NDArray[np.intp]],
    ) -> None:
        """Every network on its own rows, all of them side by side.

        `ended` says in which bin a row ended, `asked` how much its having ended there or not
        counts, (n, b) each.
        """
        rng = np.random.default_rng(self.random_state)
        layers = _drawn_layers(rng, len(members), (columns.shape[1], *self.hidden, ended.shape[1]))
        layers[5] += _log_odds(ended, asked)
        batch = min(self.batch_rows, *(rows.size for rows in members))
        steps = self.epochs * -(-max(rows.size for rows in members) // batch)
        optimizer = _AdamW(layers, self.weight_decay)
        for step, rows in enumerate(_batches(rng, members, batch, steps)):
            masks = [self._mask(rng, (*rows.shape, width)) for width in self.hidden]
            seen = columns[rows]
            active, odds = _forward(layers, seen, masks)
            pull = asked[rows] * (1.0 / (1.0 + np.exp(-odds)) - ended[rows]) / np.float32(batch)
            gradients = _backward(layers, seen, active, masks, pull)
            optimizer.step(layers, gradients, self.learning_rate * _rate(step, steps))
        w1, b1, w2, b2, w3, b3 = layers
        # the first layers side by side: one pass over a row serves every network
        self.w1_ = np.ascontiguousarray(w1.transpose(1, 0, 2).reshape(w1.shape[1], -1))
        self.b1_, self.w2_, self.b2_, self.w3_, self.b3_ = b1.reshape(-1), w2, b2, w3, b3

    def _mask(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats32:
        kept = rng.random(shape, np.float32) >= self.dropout
        return kept * np.float32(1.0 / (1.0 - self.dropout))

    def scores(self, X: NDArray[np.floating]) -> Floats:
        """Log-odds to end in each bin once it is reached, (n, b): the mean of the networks."""
        return self.scores_of_each(X).mean(axis=1)

    def held_out_scores(self, X: NDArray[np.floating], fold: NDArray[np.intp]) -> Floats:
        """`scores` of training rows, (n, b), each by the network that left out its fold."""
        return self.scores_of_each(X)[np.arange(len(X)), fold]

    def scores_of_each(self, X: NDArray[np.floating]) -> Floats:
        """What every network says, (n, nets, b)."""
        out = np.empty((len(X), self.b3_.shape[0], self.b3_.shape[2]))
        layers = self.w1_, self.b1_, self.w2_, self.b2_, self.w3_, self.b3_
        rows = np.ascontiguousarray(X, np.float64)
        _run_nets(rows, self.center_, self.per_spread_, *layers, out)
        return out

    def quantiles_of(self, scores: Floats, levels: Floats) -> Floats:
        """Log-tokens at the levels, (n, q), of such scores."""
        return hazard_log_quantiles(scores, self.edges_, levels)

    def save_files(self, directory: Path) -> None:
        """As in `LengthRegressor`, and the weights as plain arrays."""
        super().save_files(directory)
        np.savez(directory / _WEIGHTS, **{name: getattr(self, f"{name}_") for name in _ARRAYS})

    def load_files(self, directory: Path) -> None:
        """As in `LengthRegressor`."""
        super().load_files(directory)
        with arrays_of(directory / _WEIGHTS) as arrays:
            for name in _ARRAYS:
                setattr(self, f"{name}_", np.ascontiguousarray(arrays[name], np.float32))


def _standardising(X: Floats) -> tuple[Floats32, Floats32]:
    """Mean and 1 / deviation of each column, (f,); 0 where it is constant or unknown."""
    known = np.isfinite(X)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, X, 0.0)
    center = filled.sum(axis=0) / count
    deviation = np.sqrt((np.where(known, X - center, 0.0) ** 2).sum(axis=0) / count)
    varies = deviation > 1e-9 * np.maximum(np.abs(center), 1.0)
    per_spread = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    return center.astype(np.float32), per_spread.astype(np.float32)


def _log_odds(ended: Floats32, asked: Floats32) -> Floats32:
    """Of ending in each bin, (b,), whatever the row."""
    ends = (asked * ended).sum(axis=0)
    return np.log(np.maximum(ends, 1.0) / np.maximum(asked.sum(axis=0) - ends, 1.0))


def _drawn_layers(rng: np.random.Generator, nets: int, widths: tuple[int, ...]) -> Layers:
    layers: Layers = []
    for below, above in pairwise(widths):
        spread = np.sqrt(2.0 / below) * (0.1 if above == widths[-1] else 1.0)
        layers.append((spread * rng.standard_normal((nets, below, above))).astype(np.float32))
        layers.append(np.zeros((nets, 1, above), np.float32))
    return layers


def _batches(
    rng: np.random.Generator, members: list[NDArray[np.intp]], batch: int, steps: int
) -> Iterator[NDArray[np.intp]]:
    """Rows of every step, (nets, batch): each network goes through its own in random order."""
    queues = [np.empty(0, np.intp) for _ in members]
    for _ in range(steps):
        for k, rows in enumerate(members):
            if queues[k].size < batch:
                queues[k] = np.concatenate((queues[k], rng.permutation(rows)))
        yield np.stack([queue[:batch] for queue in queues])
        queues = [queue[batch:] for queue in queues]


def _forward(
    layers: Layers, columns: Floats32, masks: list[Floats32]
) -> tuple[list[Floats32], Floats32]:
    """Hidden layers, and the log-odds, (nets, batch, b)."""
    w1, b1, w2, b2, w3, b3 = layers
    first = np.maximum(columns @ w1 + b1, 0.0) * masks[0]
    second = np.maximum(first @ w2 + b2, 0.0) * masks[1]
    return [first, second], second @ w3 + b3


def _backward(
    layers: Layers, columns: Floats32, active: list[Floats32], masks: list[Floats32], pull: Floats32
) -> Layers:
    """Gradients of the layers, from those of the outputs, (nets, batch, b)."""
    _, _, w2, _, w3, _ = layers
    first, second = active
    at_second = (pull @ w3.transpose(0, 2, 1)) * masks[1] * (second > 0)
    at_first = (at_second @ w2.transpose(0, 2, 1)) * masks[0] * (first > 0)
    gradients = []
    for below, above in ((columns, at_first), (first, at_second), (second, pull)):
        gradients += [below.transpose(0, 2, 1) @ above, above.sum(axis=1, keepdims=True)]
    return gradients


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step: up in a line, down along a cosine."""
    warm = _WARM_UP * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1.0 + np.cos(np.pi * (step - warm) / max(steps - warm, 1.0)))


class _AdamW:
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, 2019)."""

    def __init__(self, layers: Layers, decay: float) -> None:
        self.decay = decay
        self.first = [np.zeros_like(layer) for layer in layers]
        self.second = [np.zeros_like(layer) for layer in layers]
        self.steps = 0

    def step(self, layers: Layers, gradients: Layers, rate: float) -> None:
        """Move the layers, in place."""
        self.steps += 1
        even = 1.0 - 0.9**self.steps
        square = 1.0 - 0.999**self.steps
        moments = zip(layers, gradients, self.first, self.second, strict=True)
        for at, (layer, gradient, mean, power) in enumerate(moments):
            mean *= 0.9
            mean += 0.1 * gradient
            power *= 0.999
            power += 0.001 * gradient * gradient
            if at % 2 == 0:  # a bias is not drawn to zero
                layer *= 1.0 - rate * self.decay
            layer -= (rate / even) * mean / (np.sqrt(power / square) + 1e-8)


@njit(nogil=True)
def standard_scores(
    X: np.ndarray, center: np.ndarray, per_spread: np.ndarray, out: np.ndarray
) -> None:
    """(x - mean) / deviation, within +-4, (n, f); 0 for what is unknown."""
    for row in range(X.shape[0]):
        for column in range(X.shape[1]):
            score = (np.float32(X[row, column]) - center[column]) * per_spread[column]
            if np.isnan(score):
                score = np.float32(0.0)
            out[row, column] = min(max(score, np.float32(-_FAR)), np.float32(_FAR))


@njit(nogil=True)
def _run_nets(
    X: np.ndarray,
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
    """Log-odds to end in each bin by each network, (n, nets, b)."""
    columns = np.empty((1, X.shape[1]), np.float32)
    first = np.empty(b1.size, np.float32)
    second = np.empty(w2.shape[2], np.float32)
    for row in range(X.shape[0]):
        standard_scores(X[row : row + 1], center, per_spread, columns)
        run_nets(columns[0], w1, b1, w2, b2, w3, b3, first, second, out[row])


@njit(nogil=True)
def run_nets(
    columns: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    w3: np.ndarray,
    b3: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    out: np.ndarray,
) -> None:
    """Log-odds of one row's standard scores, (f,), by each network, (nets, b).

    `first` and `second` are room for the hidden layers: of all networks, and of one.
    """
    nets, width, upper = w2.shape
    odds = np.empty(b3.shape[2], np.float32)
    first[:] = b1
    for column in range(columns.size):
        score = columns[column]
        if score != 0.0:
            for unit in range(b1.size):
                first[unit] += score * w1[column, unit]
    for net in range(nets):
        second[:] = b2[net, 0]
        for below in range(width):
            value = first[net * width + below]
            if value > 0.0:
                for unit in range(upper):
                    second[unit] += value * w2[net, below, unit]
        odds[:] = b3[net, 0]
        for below in range(upper):
            value = second[below]
            if value > 0.0:
                for at in range(odds.size):
                    odds[at] += value * w3[net, below, at]
        for at in range(odds.size):
            out[net, at] = odds[at]
