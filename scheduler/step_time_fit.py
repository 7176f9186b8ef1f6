"""Fit the step-time model to timed steps, robustly, and say how well it predicts new ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.problem import FloatArray
from scheduler.step_time import StepTimeModel

ROUNDS = 12
HUBER = 1.345  # of a robust standard deviation: 95 % efficient on clean data
LEAST_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class FitReport:
    """Held-out error of a fit: shares of the true duration, and the counts behind them."""

    samples: int
    held_out: int
    median_error: float
    p90_error: float
    bias: float
    outliers: int

    def to_dict(self) -> dict[str, float | int]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


def _design(samples: FloatArray) -> FloatArray:
    prefill, decodes, context = samples[:, 0], samples[:, 1], samples[:, 2]
    ones = np.ones(len(samples))
    return np.column_stack([ones, prefill > 0, prefill, decodes, context])


def _non_negative(design: FloatArray, target: FloatArray, weight: FloatArray) -> FloatArray:
    """Weighted least squares with coefficients >= 0, by active sets over five columns.

    Columns no sample exercises keep 0. All 2^5 sets are few enough to try.
    """
    scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
    rows = design / scale * np.sqrt(weight)[:, None]
    right = target * np.sqrt(weight)
    gram, moment = rows.T @ rows, rows.T @ right
    width = design.shape[1]
    best, best_loss = np.zeros(width), np.inf
    for mask in range(1, 1 << width):
        columns = [c for c in range(width) if mask >> c & 1]
        ridge = 1e-10 * np.trace(gram) * np.eye(len(columns))
        part = np.linalg.solve(gram[np.ix_(columns, columns)] + ridge, moment[columns])
        if (part < 0).any():
            continue
        full = np.zeros(width)
        full[columns] = part
        loss = float(full @ gram @ full - 2.0 * full @ moment)
        if loss < best_loss:
            best, best_loss = full, loss
    return best / scale


def _fit(samples: FloatArray) -> tuple[FloatArray, int]:
    """Coefficients by iteratively reweighted least squares, and the outliers at the end.

    Errors are weighed relative to the duration, so that rare long prefill steps do not decide
    what the many decode steps cost.
    """
    design, target = _design(samples), samples[:, 3]
    relative = 1.0 / np.maximum(target, np.median(target) * 0.1) ** 2
    weight = np.ones(len(target))
    coefficients = np.zeros(design.shape[1])
    spread = 0.0
    for _ in range(ROUNDS):
        coefficients = _non_negative(design, target, weight * relative)
        error = np.abs(design @ coefficients - target) * np.sqrt(relative)
        spread = max(1.4826 * float(np.median(error)), 1e-9)
        weight = np.minimum(1.0, HUBER * spread / np.maximum(error, 1e-12))
        weight[error > 6.0 * spread] = 0.0
        if weight.sum() < 5:
            weight = np.ones(len(target))
    return coefficients, int((error > 6.0 * spread).sum())


def fit_step_time(
    samples: FloatArray, *, name: str = "fitted", provenance: str = "fitted from timed steps"
) -> tuple[StepTimeModel, FitReport]:
    """Fit to ``samples (k, 4)``: prefill tokens, decode sequences, context tokens, seconds.

    Every fifth sample in a shuffled order is held out for the report; the model returned is
    refitted on all. Raises ValueError with fewer than LEAST_SAMPLES rows, or on rows that are
    not finite, negative, or do nothing.
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
    part, _ = _fit(shuffled[~held])
    truth = shuffled[held, 3]
    error = (_design(shuffled[held]) @ part - truth) / truth
    coefficients, outliers = _fit(samples)
    model = StepTimeModel(*(float(c) for c in coefficients), name=name, provenance=provenance)
    report = FitReport(
        samples=len(samples),
        held_out=int(held.sum()),
        median_error=float(np.median(np.abs(error))),
        p90_error=float(np.quantile(np.abs(error), 0.9)),
        bias=float(np.median(error)),
        outliers=outliers,
    )
    return model, report
