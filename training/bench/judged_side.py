"""How one version did on the traffic that a promotion is judged by, and what speaks against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.fitting.metrics import coverage, interval, interval_due, mae
from lengthwise.training.bench.results.records import RequestRecord

SHARE = 0.8
TOLERATED = 0.1


@dataclass(frozen=True, slots=True)
class Side:
    """One version on the traffic: what it attained, how well it predicted.

    `coverage` is the share of answers inside its 80 % intervals, `coverage_due` what they should
    hold: 80 %, and more where an interval ends at the request's limit, to which all that would go
    beyond belongs too.
    """

    label: str
    attainment: float
    coverage: float
    mae: float
    coverage_due: float = SHARE

    @property
    def off(self) -> float:
        """How far the coverage is from what it should be."""
        return abs(self.coverage - self.coverage_due)


def side_of(
    label: str,
    records: Sequence[RequestRecord],
    said: Sequence[LengthDistribution],
    weight: Callable[[RequestRecord], float],
) -> Side:
    """A version's side from its records and from what it said of them, in the same order."""
    low, high = (np.concatenate(parts) for parts in zip(*map(interval, said), strict=True))
    median = np.concatenate([lengths.median() for lengths in said])
    true = np.array([record.target_tokens for record in records], float)
    attained = float(
        np.average([record.met for record in records], weights=[weight(r) for r in records])
    )
    return Side(
        label,
        attained,
        coverage(true, low, high),
        mae(true, median),
        float(np.concatenate([interval_due(lengths) for lengths in said]).mean()),
    )


def objections(champion: Side, challenger: Side, difference_high: float) -> list[str]:
    """What speaks against the challenger, in words."""
    found = []
    if difference_high < 0.0:
        found.append("its SLO attainment is worse beyond noise")
    if challenger.off > TOLERATED and challenger.off > champion.off:
        due = challenger.coverage_due
        found.append(
            f"its 80 % intervals hold {challenger.coverage:.0%} of the answers, "
            f"outside {due - TOLERATED:.0%} to {min(1.0, due + TOLERATED):.0%}"
        )
    return found
