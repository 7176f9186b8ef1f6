"""The step-time model kept true to the machine it runs on."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.step_time import StepTimeModel, fit_step_time
from lengthwise.scheduler.vllm_adapter.engine.steps import StepTimer
from lengthwise.scheduler.vllm_adapter.settings import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)

# The shipped profile may be another machine's, so the first fit comes early.
_FIRST_STEPS = 250


class StepTimeRefit:
    """Refits after 250 steps, then at doubling distances up to ``every_steps`` (0: never).

    A fit takes tens of milliseconds, several engine steps, so a thread does it; a model is
    adopted only when it errs less than the present one.
    """

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self.adopted = 0
        self._due = min(_FIRST_STEPS, every_steps)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step-time-refit")
        self._work: Future[StepTimeModel | None] | None = None

    def poll(self, timer: StepTimer, present: StepTimeModel) -> StepTimeModel | None:
        """Start a fit when due; a better model when one has been found since."""
        if self._work is not None:
            if not self._work.done():
                return None
            found = self._work.result()
            self._work = None
            self.adopted += found is not None
            return found
        if self.every_steps and timer.steps >= self._due:
            self._due = timer.steps + min(timer.steps, self.every_steps)
            self._work = self._pool.submit(better_model, timer.samples(), present)
        return None

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def better_model(samples: FloatArray, present: StepTimeModel) -> StepTimeModel | None:
    """A fit to ``samples (k, 4)`` that errs less than ``present`` does on them, else None."""
    try:
        model, report = fit_step_time(samples, provenance="fitted while serving")
    except ValueError as error:
        logger.debug("no step-time refit: %s", error)
        return None
    # The report's error is on held-out steps, so a fit to noise does not win.
    return model if report["median_error"] < median_error(present, samples) else None


def median_error(model: StepTimeModel, samples: FloatArray) -> float:
    """Median of |modelled - measured| / measured over ``samples (k, 4)``."""
    modelled = np.array([model.step_s(*row[:3]) for row in samples])
    return float(np.median(np.abs(modelled - samples[:, 3]) / samples[:, 3]))
