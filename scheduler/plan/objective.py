"""What a plan is worth: the numbers the kernels' cost is computed from.

cost = Σ_i latency·w_i' − max(0, w_i·P_i − price·slot_s_i) / (1 + w_i'),  w_i' = wait_i / patience

- P_i: the probability that request i meets all its objectives, over its own length (five
  equally likely lengths) and over the start time, whose spread grows with the releases before
  it: ``spread·sqrt(wait·gap)``, the standard deviation of a sum of independent releases.
- price: value a slot-second would earn elsewhere; see ``selection``.
- the wait of a request is stretched by its ``dilation``: the arrivals that will go before it.
- patience: the wait after which a plan's promise is worth half; long by default, since
  dilation already tells what arrivals do to a plan for later.
- mode G: the paper's G = met / total latency, as -log G (arXiv 2504.14966, eq. 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.plan import kernels as k
from lengthwise.scheduler.plan.jobs import Jobs


@dataclass(frozen=True, slots=True)
class Objective:
    """Parameters of the cost; seconds, value per slot-second, and shares."""

    price: float = 0.0
    patience_s: float = 1e4
    spread: float = 1.0
    latency: float = 1e-3
    paper_g: bool = False

    def __post_init__(self) -> None:
        if not self.patience_s > 0:
            raise ValueError(f"patience_s must be positive, got {self.patience_s}")
        for name in ("price", "spread", "latency"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be finite and not negative: {getattr(self, name)}")

    def numbers(self, jobs: Jobs) -> FloatArray:
        """The kernels' row for a queue."""
        return np.array(
            [
                self.price,
                self.patience_s,
                self.spread,
                jobs.release_gap_s,
                jobs.stall_s,
                self.latency,
                k.G_MODE if self.paper_g else k.ATTAINMENT_MODE,
            ]
        )


class Evaluator:
    """Costs of orders of one queue, with the buffers the kernel restarts from."""

    def __init__(self, jobs: Jobs, objective: Objective, length: int) -> None:
        points = max(1, -(-length // k.RESTART_EVERY))
        width = max(len(jobs.running), int(jobs.engine[k.SLOTS])) + 1
        self.jobs = jobs
        self.numbers = objective.numbers(jobs)
        self.states = np.empty((2, points, k._STATE + 1))
        self.heaps = np.empty((2, points, width), dtype=np.int64)
        self.side = np.zeros(points, dtype=np.int64)
        self.work = np.empty(width, dtype=np.int64)
        k.start_state(jobs.engine, jobs.running, self.states[0, 0], self.heaps[0, 0])

    def cost(self, order: IntArray) -> float:
        """The cost of an order no longer than ``length``, walked from its beginning."""
        return float(
            k.evaluate(
                self.jobs.engine,
                self.numbers,
                self.jobs.running,
                self.jobs.waiting,
                order,
                0,
                self.states,
                self.heaps,
                self.side,
                self.work,
            )
        )

    def settle(self) -> None:
        """Make the order just walked from the beginning the accepted one."""
        self.side[1:] = 1 - self.side[1:]
