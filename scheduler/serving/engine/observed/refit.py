"""The step-time model kept true to the machine it runs on."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.serving.engine.observed.steps import StepTimer
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.step_alignment import aligned
from lengthwise.scheduler.step_anchor import Anchor
from lengthwise.scheduler.step_fit import fit_step_time, model_error
from lengthwise.scheduler.step_time import COEFFICIENTS, StepTimeModel

logger = logging.getLogger(LOGGER_NAME)

# The shipped profile may be another machine's, so the first fit comes early.
_FIRST_STEPS = 250
_LEAST_GAIN = 1e-9  # of relative error: below is rounding
_SAYS_MUCH = 0.5  # of what the engine may be asked
_TELLS = 0.9  # of a coefficient's variance


class StepTimeRefit:
    """Refits after 250 steps, then at doubling distances up to ``every_steps`` (0: never).

    A fit takes tens of milliseconds, several engine steps, so a thread does it; a model is
    adopted only when it errs less than the present one. What is believed at the start moves as far
    as the steps that were seen reach, of ``capacity`` (None: of a step of 2,048 prompt tokens).
    """

    def __init__(
        self,
        every_steps: int,
        believed: StepTimeModel | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        self.every_steps = every_steps
        self._believed = believed
        self._capacity = capacity
        self.adopted = 0
        self._due = min(_FIRST_STEPS, every_steps)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step-time-refit")
        self._work: Future[tuple[StepTimeModel, StepTimeModel] | None] | None = None

    def poll(self, timer: StepTimer, present: StepTimeModel) -> StepTimeModel | None:
        """Start a fit when due; a better model when one has been found since."""
        if self._work is not None:
            if not self._work.done():
                return None
            work, self._work = self._work, None
            if (fault := work.exception()) is not None:  # told once, and the next fit may do
                logger.warning("step-time refit failed, the model stays: %r", fault)
                return None
            found = work.result()
            if found is None:
                return None
            self.adopted += 1
            self._believed = found[1]
            return found[0]
        if self.every_steps and timer.steps >= self._due:
            self._due = timer.steps + min(timer.steps, self.every_steps)
            self._work = self._pool.submit(self._fit, timer.samples(), present)
        return None

    def _fit(
        self, samples: FloatArray, present: StepTimeModel
    ) -> tuple[StepTimeModel, StepTimeModel] | None:
        """A better model, and what is believed from then on."""
        anchor = anchor_of(self._believed or present, self._capacity)
        samples = aligned(samples)
        model = better_model(samples, present, anchor)
        return None if model is None else (model, believed_after(model, anchor, samples))

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def anchor_of(believed: StepTimeModel, capacity: Capacity | None) -> Anchor:
    """What is believed of an engine of this capacity."""
    if capacity is None:
        return Anchor(believed)
    return Anchor(believed, float(capacity.max_num_batched_tokens), float(capacity.max_num_seqs))


def better_model(
    samples: FloatArray, present: StepTimeModel, anchor: Anchor | None = None
) -> StepTimeModel | None:
    """A fit to ``samples (k, 4)`` that errs less than ``present`` does on them, else None.

    It stays as near to the anchor (None: to ``present``) as the samples' span asks.
    """
    try:
        model, report = fit_step_time(
            samples, provenance="fitted while serving", anchor=anchor or Anchor(present)
        )
    except ValueError as error:
        logger.debug("no step-time refit: %s", error)
        return None
    # On held-out steps, so that a fit to noise does not win; and on all, by the model itself: the
    # held-out are foreseen by another fit, which may be a better one where no model fits.
    errs = max(report["mean_error"], model_error(model, samples))
    gain = model_error(present, samples) - errs
    return model if gain > _LEAST_GAIN else None


def believed_after(model: StepTimeModel, anchor: Anchor, samples: FloatArray) -> StepTimeModel:
    """What a later fit starts from: a coefficient is the model's where its steps say much of it.

    So what long prompts cost is not forgotten over an hour of short ones, nor what a step costs by
    itself over an hour of full batches, and the little that these move it does not add up.
    """
    known = (anchor.spans(samples) >= _SAYS_MUCH) & (anchor.told(samples) >= _TELLS)
    values = np.where(known, model.coefficients, anchor.scaled(samples))
    return replace(model, **dict(zip(COEFFICIENTS, values.tolist(), strict=True)))
