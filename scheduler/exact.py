"""The best order of a short queue by trying them all."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.plan.objective import Evaluator

LONGEST = 8


def best_order(evaluator: Evaluator, n: int) -> tuple[IntArray, float]:
    """The cheapest of all n! orders and its cost; ValueError above ``LONGEST`` requests."""
    if n > LONGEST:
        raise ValueError(f"exhaustive search is for up to {LONGEST} requests, got {n}")
    best, best_cost = np.arange(n, dtype=np.int64), np.inf
    for candidate in permutations(range(n)):
        order = np.array(candidate, dtype=np.int64)
        cost = evaluator.cost(order)
        if cost < best_cost:
            best, best_cost = order, cost
    return best, best_cost
