"""``sa`` told wrong things for some of the run; what tells it so is only its problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lengthwise.scheduler.policies.annealing import AnnealingPolicy
from lengthwise.scheduler.problem import Plan, Problem, RequestArrays
from lengthwise.scheduler.step_time import StepTimeModel

Told = Callable[[Problem], Problem]


def slower(model: StepTimeModel, factor: float) -> StepTimeModel:
    """The model with every step ``factor`` times as long."""
    return model.slowed(factor)


def steps(factor: float) -> Told:
    """Every step is said to take ``factor`` times as long."""
    return lambda problem: replace(problem, step_time=slower(problem.step_time, factor))


def step_part(name: str, factor: float) -> Told:
    """One coefficient of the step time is ``factor`` times as large."""

    def told(problem: Problem) -> Problem:
        model = problem.step_time
        return replace(problem, step_time=replace(model, **{name: factor * getattr(model, name)}))

    return told


def lengths(factor: float) -> Told:
    """Every answer is said to be ``factor`` times as long."""

    def longer(rows: RequestArrays) -> RequestArrays:
        return replace(rows, quantiles=np.maximum(1.0, factor * rows.quantiles))

    def told(problem: Problem) -> Problem:
        recovering = problem.recovering
        return replace(
            problem,
            waiting=longer(problem.waiting),
            running=longer(problem.running),
            recovering=None if recovering is None else longer(recovering),
        )

    return told


@dataclass
class Misled:
    """``policy``, told wrong things until ``until_s``; ``seen`` is called after each plan."""

    policy: AnnealingPolicy
    told: Told
    until_s: float
    seen: Callable[[float, AnnealingPolicy], None] = lambda now_s, policy: None

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    @property
    def nominal_s(self) -> float:
        """The policy's."""
        return self.policy.nominal_s

    def warm_up(self) -> None:
        """The policy's."""
        self.policy.warm_up()

    def finished(self, arrival_s: float, met: bool) -> None:
        """Outcomes are told as they are."""
        self.policy.finished(arrival_s, met)

    def status(self) -> dict[str, Any]:
        """The policy's."""
        return self.policy.status()

    def __call__(self, problem: Problem) -> Plan:
        """The policy's plan of what it is told."""
        asked = self.told(problem) if problem.now_s < self.until_s else problem
        plan = self.policy(asked)
        self.seen(problem.now_s, self.policy)
        return plan
