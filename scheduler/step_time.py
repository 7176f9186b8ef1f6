"""How long an engine step takes, and how to learn it: the planner's and simulator's clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from lengthwise.data.arrays import FloatArray

COEFFICIENTS = ("base_s", "prefill_step_s", "prefill_token_s", "decode_seq_s", "context_token_s")

ROUNDS = 3
FIRST_SPREAD = 0.1  # relative to a step's duration
HUBER = 1.345  # of a robust standard deviation: 95 % efficient on clean data
LEAST_SAMPLES = 20
SPAN_EXAMPLES = 5  # so many steps must be as large as what is called spanned


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """Seconds a step takes, linear in what the step does.

    ``base + [prefill > 0]·prefill_step + prefill_tokens·prefill_token + decode_seqs·decode_seq
    + context_tokens·context_token``, where ``context_tokens`` is the sum over the decoding
    sequences of prompt + generated. With batch b and mean context l this is the paper's
    ``α_d·b·l + β_d·b + δ_d`` for decodes and ``γ_p·l + δ_p`` for prefills (arXiv 2504.14966,
    section 3 of its recalled form); its ``γ_d·l`` term never showed in an engine we measured.
    """

    base_s: float
    prefill_step_s: float
    prefill_token_s: float
    decode_seq_s: float
    context_token_s: float
    name: str = "unnamed"
    provenance: str = "unknown"

    def __post_init__(self) -> None:
        for name in COEFFICIENTS:
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if self.base_s + self.decode_seq_s <= 0:
            raise ValueError("a step must take time: base_s + decode_seq_s is 0")

    @property
    def coefficients(self) -> tuple[float, float, float, float, float]:
        """The numbers in the order of COEFFICIENTS, as the kernels take them."""
        return (
            self.base_s,
            self.prefill_step_s,
            self.prefill_token_s,
            self.decode_seq_s,
            self.context_token_s,
        )

    def step_s(self, prefill_tokens: float, decode_seqs: float, context_tokens: float) -> float:
        """Duration of one step in seconds."""
        prefill = self.prefill_step_s if prefill_tokens > 0 else 0.0
        return (
            self.base_s
            + prefill
            + self.prefill_token_s * prefill_tokens
            + self.decode_seq_s * decode_seqs
            + self.context_token_s * context_tokens
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a profile file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StepTimeModel:
        """The inverse of to_dict; unknown or missing keys raise ValueError."""
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"step_time has unknown keys {sorted(unknown)}")
        if missing := set(COEFFICIENTS) - set(values):
            raise ValueError(f"step_time lacks {sorted(missing)}")
        return cls(**dict(values))


def _design(samples: FloatArray) -> FloatArray:
    prefill, decodes, context = samples[:, 0], samples[:, 1], samples[:, 2]
    ones = np.ones(len(samples))
    return np.column_stack([ones, prefill > 0, prefill, decodes, context])


@dataclass(frozen=True, slots=True)
class Anchor:
    """What is believed of an engine before its steps are seen, and the largest step it may take.

    A fit leaves a coefficient near ``model`` as far as the steps do not span what the engine may be
    asked: short prompts say what short prompts cost. Where they span the share r of that, it moves
    by r / (1 - r) of itself at most; 100 % of it at half, freely at the whole.
    """

    model: StepTimeModel
    prefill_tokens: float = 2048.0
    decode_seqs: float | None = None  # None: as many as the steps have

    def spans(self, samples: FloatArray) -> FloatArray:
        """The share ``(5,)`` that samples ``(k, 4)`` span, by coefficient; 0 to 1.

        The few largest steps do not count: a span is where there is more than one example.
        """
        prefill, decodes = samples[:, 0], samples[:, 1]
        some = min(1.0, float((prefill > 0).sum()) / LEAST_SAMPLES)
        reach = decodes.max() if self.decode_seqs is None else self.decode_seqs
        busy = min(1.0, _nearly_largest(decodes) / max(float(reach), 1.0))
        long = min(1.0, _nearly_largest(prefill) / max(self.prefill_tokens, 1.0))
        return np.array([1.0, some, long, busy, busy])

    def scaled(self, samples: FloatArray) -> FloatArray:
        """The model's coefficients ``(5,)`` on a machine as fast as these steps say it is."""
        believed = np.asarray(self.model.coefficients)
        return believed * float(np.median(samples[:, 3] / (_design(samples) @ believed)))

    def bounds(self, samples: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The least and the largest value ``(5,)`` of each coefficient."""
        middle, spans = self.scaled(samples), self.spans(samples)
        with np.errstate(divide="ignore"):
            share = spans / (1.0 - spans)
        # where nothing was believed of it: what it may make of a usual step
        whole = np.array([1.0, 1.0, self.prefill_tokens, *_reach(samples)])
        usual = float(np.median(samples[:, 3])) / np.maximum(whole, 1.0)
        with np.errstate(invalid="ignore"):  # nothing times whatever
            most = np.where(middle > 0, middle * (1.0 + share), share * usual)
            least = middle * np.maximum(0.0, 1.0 - share)
        return np.nan_to_num(least, nan=0.0), np.nan_to_num(most, nan=0.0, posinf=np.inf)


def _nearly_largest(values: FloatArray) -> float:
    return float(np.sort(values)[-min(len(values), SPAN_EXAMPLES)])


def _reach(samples: FloatArray) -> tuple[float, float]:
    return float(samples[:, 1].max()), float(samples[:, 2].max())


def _fit(samples: FloatArray, anchor: Anchor | None = None) -> tuple[FloatArray, int]:
    """Coefficients >= 0 by Huber's loss, and how many steps are outliers.

    Errors are weighed relative to the duration, so that rare long prefill steps do not decide
    what the many decode steps cost. The loss's scale is that of the fit before, whose outliers are
    left out. Columns no sample exercises keep 0, or what the anchor says.
    """
    design, target = _design(samples), samples[:, 3]
    columns = design.shape[1]
    least, most = np.zeros(columns), np.full(columns, np.inf)
    if anchor is not None:
        least, most = anchor.bounds(samples)
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
    kept, spread = np.ones(len(target), bool), FIRST_SPREAD
    for _ in range(ROUNDS):
        solution = least_squares(
            lambda c, a, b: a @ c - b, solution, lambda c, a, b: a, args=(rows[kept], right[kept]),
            bounds=(low, high), method="dogbox", loss="huber", f_scale=HUBER * spread,
        ).x  # fmt: skip
        error = np.abs(rows @ solution - right)
        spread = max(1.4826 * float(np.median(error)), 1e-9)
        kept = error <= 6.0 * spread
    coefficients[used] = solution / scale
    return coefficients, int((~kept).sum())


def robust_coefficients(samples: FloatArray) -> FloatArray:
    """The coefficients ``(5,)`` that fit ``samples (k, 4)`` best, outliers left out."""
    return _fit(samples)[0]


def relative_errors(coefficients: FloatArray, samples: FloatArray) -> FloatArray:
    """(modelled - measured) / measured of ``samples (k, 4)``."""
    return (_design(samples) @ coefficients - samples[:, 3]) / samples[:, 3]


def capped_error(coefficients: FloatArray, samples: FloatArray) -> float:
    """Mean relative error, each of 1 at most.

    A median would not see what few steps do: those with prompts may be one in ten.
    """
    return float(np.minimum(np.abs(relative_errors(coefficients, samples)), 1.0).mean())


def fit_step_time(
    samples: FloatArray,
    *,
    name: str = "fitted",
    provenance: str = "fitted from timed steps",
    anchor: Anchor | None = None,
) -> tuple[StepTimeModel, dict[str, float]]:
    """Fit to ``samples (k, 4)``: prefill tokens, decode sequences, context tokens, seconds.

    With an ``anchor`` no coefficient moves further from it than the samples span.
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
    part, _ = _fit(shuffled[~held], anchor)
    error = relative_errors(part, shuffled[held])
    coefficients, outliers = _fit(samples, anchor)
    model = StepTimeModel(
        **dict(zip(COEFFICIENTS, (float(c) for c in coefficients), strict=True)),
        name=name,
        provenance=provenance,
    )
    report = {
        "samples": len(samples),
        "held_out": int(held.sum()),
        "median_error": float(np.median(np.abs(error))),
        "p90_error": float(np.quantile(np.abs(error), 0.9)),
        "mean_error": capped_error(part, shuffled[held]),
        "bias": float(np.median(error)),
        "outliers": outliers,
    }
    return model, report
