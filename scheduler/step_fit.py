"""The step-time model learned from timed steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from lengthwise.data.arrays import BoolArray, FloatArray
from lengthwise.scheduler.step_anchor import ALIKE, LEAST_SAMPLES, Anchor, design_of
from lengthwise.scheduler.step_time import COEFFICIENTS, StepTimeModel

ROUNDS = 3
FIRST_SPREAD = 0.1  # relative to a step's duration
HUBER = 1.345  # of a robust standard deviation: 95 % efficient on clean data
GRAPH_TOKENS = (64.0, 128.0, 256.0, 512.0, 1024.0)  # the largest CUDA graph: sizes that engines use
MOST_LOOKS = 100  # usual fits end after ten; what is believed far from the truth may go to and fro
SURELY = 0.9  # of the error without a floor: below, it is there


def _huber_but(last: int) -> Callable[[FloatArray], FloatArray]:
    """Huber's loss for ``least_squares``, squares for the last few residuals."""

    def loss(squares: FloatArray) -> FloatArray:
        far = np.maximum(squares, 1.0)
        rho = np.array([2.0 * np.sqrt(far) - 1.0, far**-0.5, -0.5 * far**-1.5])
        near = squares <= 1.0
        near[len(near) - last :] = True
        rho[:, near] = np.array([squares[near], np.ones(near.sum()), np.zeros(near.sum())])
        return rho

    return loss


def _fit(samples: FloatArray, anchor: Anchor | None = None) -> FloatArray:
    """Coefficients >= 0 by Huber's loss and the anchor's prior.

    Errors are weighed relative to the duration, so that rare long prefill steps do not decide
    what the many decode steps cost. The loss's scale is that of the fit before, whose outliers are
    left out. Columns no sample exercises keep 0, or what the anchor says.
    """
    design, target = design_of(samples), samples[:, 3]
    columns = design.shape[1]
    least, most = np.zeros(columns), np.full(columns, np.inf)
    believed, doubts = np.zeros(columns), np.full(columns, np.inf)
    if anchor is not None:
        least, most = anchor.bounds(samples)
        believed, doubts = anchor.scaled(samples), anchor.doubts(samples)
    size = np.abs(design / np.maximum(target, 1e-12)[:, None]).max(axis=0)
    used = (size > 0) & (most > least)
    coefficients = np.where(used, 0.0, least)
    # what is not fitted is taken off first; a step still takes time
    rest = np.maximum(target - design @ coefficients, 0.05 * target)
    relative = 1.0 / np.maximum(rest, np.median(rest) * 0.1)
    rows, right = design[:, used] * relative[:, None], rest * relative
    scale = np.abs(rows).max(axis=0)
    rows = rows / scale
    low, high = least[used] * scale, most[used] * scale
    solution = np.clip(np.full(rows.shape[1], 0.5 / rows.shape[1]), low, high)
    prior = np.diag(1.0 / (doubts[used] * scale))
    prior_right = believed[used] / doubts[used]
    kept, spread = np.ones(len(target), bool), FIRST_SPREAD
    for _ in range(ROUNDS):
        weight = math.sqrt(spread**2 + kept.sum() * ALIKE**2)
        matrix = np.vstack([rows[kept], weight * prior])
        aim = np.concatenate([right[kept], weight * prior_right])
        solution = least_squares(
            lambda c, a, b: a @ c - b, solution, lambda c, a, b: a, args=(matrix, aim),
            bounds=(low, high), method="dogbox", loss=_huber_but(len(prior)),
            f_scale=HUBER * spread, max_nfev=MOST_LOOKS,
        ).x  # fmt: skip
        error = np.abs(rows @ solution - right)
        spread = max(1.4826 * float(np.median(error)), 1e-9)
        kept = error <= 6.0 * spread
    coefficients[used] = solution / scale
    return coefficients


def robust_coefficients(samples: FloatArray) -> FloatArray:
    """The coefficients ``(5,)`` that fit ``samples (k, 4)`` best, outliers left out."""
    return _fit(samples)


def relative_errors(coefficients: FloatArray, samples: FloatArray) -> FloatArray:
    """(modelled - measured) / measured of ``samples (k, 4)``, by the linear part alone."""
    return (design_of(samples) @ coefficients - samples[:, 3]) / samples[:, 3]


def capped(errors: FloatArray) -> float:
    """Mean relative error, each of 1 at most.

    A median would not see what few steps do: those with prompts may be one in ten.
    """
    return float(np.minimum(np.abs(errors), 1.0).mean())


def model_error(model: StepTimeModel, samples: FloatArray) -> float:
    """Capped mean error of a model on ``samples (k, 4)``."""
    floor = Floor(model.eager_s, model.graph_tokens)
    return capped(_errors(np.asarray(model.coefficients), floor, samples))


class Floor(NamedTuple):
    """Of eager steps, see ``StepTimeModel``."""

    eager_s: float = 0.0
    graph_tokens: float = 0.0

    def eager(self, samples: FloatArray) -> BoolArray:
        """Which steps are beyond a graph ``(k,)``."""
        prefill = samples[:, 0]
        return (prefill > 0) & (prefill + samples[:, 1] > self.graph_tokens)


def _errors(coefficients: FloatArray, floor: Floor, samples: FloatArray) -> FloatArray:
    linear_s = design_of(samples) @ coefficients
    modelled_s = np.where(floor.eager(samples), np.maximum(linear_s, floor.eager_s), linear_s)
    return (modelled_s - samples[:, 3]) / samples[:, 3]


def _fit_above(
    samples: FloatArray, anchor: Anchor | None, graph_tokens: float, linear: FloatArray
) -> tuple[FloatArray, Floor] | None:
    """Coefficients of the steps above a floor, and the floor; None where few lie on it.

    In turn: who lies on it by the coefficients, its height from them, the rest fitted anew.
    """
    coefficients = linear
    eager = Floor(0.0, graph_tokens).eager(samples)
    if eager.sum() < LEAST_SAMPLES:
        return None
    eager_s = float(np.median(samples[eager, 3]))
    for _ in range(ROUNDS):
        on_it = eager & (design_of(samples) @ coefficients < eager_s)
        if min(on_it.sum(), (~on_it).sum()) < LEAST_SAMPLES:
            return None
        eager_s = float(np.median(samples[on_it, 3]))
        coefficients = _fit(samples[~on_it], anchor)
    return coefficients, Floor(eager_s, graph_tokens)


def _fit_floored(
    samples: FloatArray, anchor: Anchor | None, sizes: Sequence[float] = GRAPH_TOKENS
) -> tuple[FloatArray, Floor]:
    """The linear fit, or the best with a floor where that errs surely less.

    What was believed of a floor stays where too few steps could show it.
    """
    linear, floor = _fit(samples, anchor), Floor()
    if anchor is not None and anchor.model.eager_s > 0.0:
        believed = Floor(anchor.model.eager_s, anchor.model.graph_tokens)
        if believed.eager(samples).sum() < LEAST_SAMPLES:
            floor = believed
    best = linear, floor
    least = SURELY * capped(_errors(linear, floor, samples))
    for graph_tokens in sizes:
        found = _fit_above(samples, anchor, graph_tokens, linear)
        if found is not None and (error := capped(_errors(*found, samples))) < least:
            best, least = found, error
    return best


def fit_step_time(
    samples: FloatArray,
    *,
    name: str = "fitted",
    provenance: str = "fitted from timed steps",
    anchor: Anchor | None = None,
) -> tuple[StepTimeModel, dict[str, float]]:
    """Fit to ``samples (k, 4)``: prefill tokens, decode sequences, context tokens, seconds.

    With an ``anchor`` no coefficient moves further from it than the samples span. A floor under
    eager steps is found where there is one (an H200's, docs/results/gpu.md).
    Every fifth sample in a shuffled order is held out for the report (errors as shares of the
    true duration); the model returned is refitted on all. Raises ValueError with fewer than
    LEAST_SAMPLES rows, or on rows that are not finite, negative, or without duration.
    """
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 2 or samples.shape[1] != 4:
        raise ValueError(f"samples must be (k, 4), got {samples.shape}")
    if len(samples) < LEAST_SAMPLES:
        raise ValueError(f"need at least {LEAST_SAMPLES} timed steps, got {len(samples)}")
    if not np.isfinite(samples).all() or (samples < 0).any() or (samples[:, 3] <= 0).any():
        raise ValueError("samples must be finite, not negative, with durations above 0")
    shuffled = samples[np.random.default_rng(0).permutation(len(samples))]
    held = np.arange(len(samples)) % 5 == 0
    coefficients, floor = _fit_floored(samples, anchor)
    sizes = (floor.graph_tokens,) if floor.eager_s > 0.0 else ()
    error = _errors(*_fit_floored(shuffled[~held], anchor, sizes), shuffled[held])
    wild = np.abs(_errors(coefficients, floor, samples))
    model = StepTimeModel(
        **dict(zip(COEFFICIENTS, (float(c) for c in coefficients), strict=True)),
        **floor._asdict(),
        name=name,
        provenance=provenance,
    )
    report = {
        "samples": len(samples),
        "held_out": int(held.sum()),
        "median_error": float(np.median(np.abs(error))),
        "p90_error": float(np.quantile(np.abs(error), 0.9)),
        "mean_error": capped(error),
        "bias": float(np.median(error)),
        "outliers": int((wild > 6.0 * 1.4826 * max(float(np.median(wild)), 1e-9)).sum()),
    }
    return model, report
