"""A request as the router knows it, and what an instance says of those it has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.fleet.beginnings import Beginning
from lengthwise.scheduler.problem import NO_PREFIX


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """One request; seconds on the router's clock, tokens; an absent objective is inf.

    ``key`` is the router's own number for it, unique while the request lives. ``quantiles (q,)``
    are those of its answer's length. Requests of the same ``prefix`` (-1 for none) share their
    first ``prefix_tokens``. Where a prompt is known by its ``beginnings``, the shortest first, they
    are the longest of these that an earlier one had. Raises ValueError for what is not a number.
    """

    key: int
    arrival_s: float
    prompt_tokens: float
    quantiles: FloatArray
    ttft_s: float = math.inf
    tpot_s: float = math.inf
    e2e_s: float = math.inf
    weight: float = 1.0
    prefix: int = NO_PREFIX
    prefix_tokens: float = 0.0
    beginnings: Sequence[Beginning] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.arrival_s + self.prompt_tokens + self.weight):
            raise ValueError(
                "arrival_s, prompt_tokens and weight must be finite, got "
                f"{self.arrival_s}, {self.prompt_tokens}, {self.weight}"
            )
        if math.isnan(self.ttft_s + self.tpot_s + self.e2e_s):
            raise ValueError(f"objectives must be numbers, inf for none, of request {self.key}")
        if not np.isfinite(self.quantiles).all():
            raise ValueError(f"quantiles must be finite, got {self.quantiles}")

    @property
    def starts(self) -> Sequence[Beginning]:
        """Beginnings that others may have, or have had, the shortest first."""
        if self.beginnings or self.prefix < 0:
            return self.beginnings
        return ((self.prefix, self.prefix_tokens),)

    @property
    def has_objective(self) -> bool:
        """Whether anything was promised to it."""
        return min(self.ttft_s, self.tpot_s, self.e2e_s) < math.inf


class PlanLimits(NamedTuple):
    """A plan's limits: most running, most prompt tokens a step beside its decodes, and in every
    how manyth step prompts are computed; inf, inf and 1 for none."""

    running: float = math.inf
    prefill_tokens: float = math.inf
    period: float = 1.0


NO_LIMITS = PlanLimits()


@dataclass(frozen=True, slots=True)
class InstanceState:
    """What an instance holds at ``taken_s``, a time on the router's clock.

    ``keys (n,)``: first ``running`` that run, then ``recovering`` that the engine preempted, then
    those that wait, the next first. Of each ``(n,)``: tokens generated, prompt tokens still to
    compute (without what a prefix cache has), tokens cached or shared, and the first token's time,
    NaN before. ``cached_prefixes`` gives the tokens that a newcomer with that prefix would find,
    None where the instance does not say. ``limits`` are those of the plan in force there.
    ``epoch`` changes when the instance starts anew, ``sequence`` grows within it.
    """

    taken_s: float
    keys: IntArray
    running: int
    recovering: int
    generated_tokens: FloatArray
    prefill_left_tokens: FloatArray
    cached_tokens: FloatArray
    first_token_s: FloatArray
    cached_prefixes: Mapping[int, float] | None = None
    epoch: int = 0
    sequence: int = 0
    draining: bool = False
    limits: PlanLimits = NO_LIMITS

    def __post_init__(self) -> None:
        n = len(self.keys)
        if not 0 <= self.running + self.recovering <= n:
            raise ValueError(
                f"running and recovering must be at most the {n} keys, got {self.running} and "
                f"{self.recovering}"
            )
        most, prefill_tokens, period = self.limits
        if not (most >= 1.0 and prefill_tokens >= 0.0 and 1.0 <= period < math.inf):
            raise ValueError(
                "limits must be of at least 1 running, 0 prompt tokens and a period of 1, got "
                f"{tuple(self.limits)}"
            )
        for name in (
            "generated_tokens",
            "prefill_left_tokens",
            "cached_tokens",
            "first_token_s",
        ):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} must have {n} rows, got {len(getattr(self, name))}")
