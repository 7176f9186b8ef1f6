"""The step-time model kept true to the machine it runs on."""

from __future__ import annotations

import logging

import numpy as np

from scheduler.problem import FloatArray
from scheduler.step_time import StepTimeModel, fit_step_time
from scheduler.vllm_adapter.settings import LOGGER_NAME
from scheduler.vllm_adapter.step_timer import StepTimer

logger = logging.getLogger(LOGGER_NAME)


class StepTimeRefit:
    """Refits every ``every_steps`` steps (0: never); adopts a model only when it errs less."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self.adopted = 0
        self.median_error: float | None = None

    def maybe(self, timer: StepTimer, present: StepTimeModel) -> StepTimeModel | None:
        """A better model when a refit is due and finds one."""
        if not self.every_steps or timer.steps == 0 or timer.steps % self.every_steps:
            return None
        samples = timer.samples()
        try:
            model, report = fit_step_time(samples, provenance="fitted while serving")
        except ValueError as error:
            logger.debug("no step-time refit: %s", error)
            return None
        # The report's error is on held-out steps, so a fit to noise does not win.
        if report["median_error"] >= median_error(present, samples):
            return None
        self.adopted += 1
        self.median_error = report["median_error"]
        return model


def median_error(model: StepTimeModel, samples: FloatArray) -> float:
    """Median of |modelled - measured| / measured over ``samples (k, 4)``."""
    modelled = np.array([model.step_s(*row[:3]) for row in samples])
    return float(np.median(np.abs(modelled - samples[:, 3]) / samples[:, 3]))
