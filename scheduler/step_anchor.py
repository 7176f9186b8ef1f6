"""What is believed of an engine's step times beforehand, and how far its steps say more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.step_time import StepTimeModel

LEAST_SAMPLES = 20
SPAN_EXAMPLES = 5  # so many steps must be as large as what is called spanned
# Steps of one kind err alike, so that thousands of them weigh as a few kinds would.
ALIKE = 0.016  # of a step's duration: what no number of steps averages out
DOUBT = 0.3  # of what is believed of a coefficient, once the machine's speed is known


def design_of(samples: FloatArray) -> FloatArray:
    """What each coefficient of a step-time model weighs in ``samples (k, 4)``: ``(k, 5)``."""
    prefill, decodes, context = samples[:, 0], samples[:, 1], samples[:, 2]
    ones = np.ones(len(samples))
    return np.column_stack([ones, prefill > 0, prefill, decodes, context])


@dataclass(frozen=True, slots=True)
class Anchor:
    """What is believed of an engine before its steps are seen, and the largest step it may take.

    A fit leaves a coefficient near ``model`` as far as the steps do not span what the engine may be
    asked: short prompts say what short prompts cost. Where they span the share r of that, it moves
    by r / (1 - r) of itself at most; 100 % of it at half, freely at the whole. And it leaves near
    it what the steps do not tell apart: a batch that is always full has the same steps whether they
    are long by themselves or by their sequences, and a plan that took the one for the other would
    run a nearly empty batch. So a coefficient is held by a normal prior, DOUBT of itself wide,
    against steps that all err by ALIKE together.
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
        return believed * float(np.median(samples[:, 3] / (design_of(samples) @ believed)))

    def doubts(self, samples: FloatArray) -> FloatArray:
        """The prior's standard deviation ``(5,)``: where nothing was believed, a whole step's."""
        design, believed = design_of(samples), self.scaled(samples)
        whole = [
            float(np.median(samples[column > 0, 3] / column[column > 0])) if column.any() else 1.0
            for column in design.T
        ]
        return np.where(believed > 0, DOUBT * believed, whole)

    def told(self, samples: FloatArray) -> FloatArray:
        """The share ``(5,)`` of each coefficient's variance that samples ``(k, 4)`` take away."""
        effects = design_of(samples) * self.doubts(samples) / samples[:, 3:]
        precision = np.eye(effects.shape[1]) + effects.T @ effects / len(samples) / ALIKE**2
        return 1.0 - np.diag(np.linalg.inv(precision))

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
