"""What planning is expected to bring: a plan's order against order of arrival, now and then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.plan.objective import Evaluator, Objective
from lengthwise.scheduler.problem import Problem, warm_up_problem
from lengthwise.scheduler.vllm_adapter.engine.metrics import EngineMetrics

_EVERY = 20  # plans
_COMPARED = 512  # requests at the head


class PlanComparison:
    """Judges one plan in twenty beside arrival order by one evaluator, and adds up."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._seen = self._compared = 0
        self._weight = {"offered": 0.0, "plan": 0.0, "arrival": 0.0}

    def warm_up(self) -> None:
        """Compile what a comparison needs, so that no request waits for it."""
        against_arrival_order(warm_up_problem(), np.arange(3))

    def note(self, problem: Problem, order: IntArray) -> None:
        """Every plan passes here; one in twenty is compared."""
        self._seen += 1
        if self._seen % _EVERY != 1:
            return
        attained, offered = against_arrival_order(problem, order)
        self._compared += 1
        self._weight["offered"] += offered
        self._metrics.compared.inc(offered)
        for name, value in attained.items():
            self._weight[name] += value
            self._metrics.expected_attained.labels(name).inc(value)

    def status(self) -> dict[str, float]:
        """Plans compared; class weight in them, and what either order should attain of it."""
        return {"plans": self._compared} | self._weight


def against_arrival_order(problem: Problem, order: IntArray) -> tuple[dict[str, float], float]:
    """Class weight that the heads of ``plan`` and ``arrival`` order should attain, and of how much.

    Only the rows of either head are prepared: a long queue would cost milliseconds.
    """
    length = min(len(order), _COMPARED)
    arrival = np.argsort(problem.waiting.arrival_s, kind="stable")
    heads = {"plan": order[:length], "arrival": arrival[:length]}
    rows = np.union1d(heads["plan"], heads["arrival"])
    jobs = prepare(replace(problem, waiting=problem.waiting.take(rows)))
    evaluator = Evaluator(jobs, Objective(latency=0.0), length)
    attained = {
        name: max(0.0, -evaluator.cost(np.searchsorted(rows, head))) for name, head in heads.items()
    }
    return attained, float(np.sort(jobs.weight)[-length:].sum())
