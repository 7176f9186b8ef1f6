"""What an instance publishes, as plain values: written in the engine, read beside the router.

Times in it are ages on the instance's own clock, so that clocks of two hosts are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.fleet.fleet_request import (
    NO_LIMITS,
    FleetRequest,
    InstanceState,
    PlanLimits,
)
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile, PrefixCache, Speculation
from lengthwise.scheduler.step_time import NUMBERS, StepTimeModel

VERSION = 3
_NEVER = -1.0  # the age of what has not happened


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One request of an instance: tokens generated, prompt tokens left, tokens cached or shared,
    and seconds since its first token (None before)."""

    key: int
    generated_tokens: float
    prefill_left_tokens: float
    cached_tokens: float = 0.0
    since_first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """An instance's state at ``at_s`` on its own monotonic clock.

    ``rows``: ``running`` that run, ``recovering`` that were preempted, then who waits, the next
    first. ``others`` describes those that the reader may not know, with their age in place of
    their arrival. ``limits`` are those of the plan in force; ``about`` is for people: versions,
    policy.
    """

    epoch: int
    sequence: int
    at_s: float
    profile: EngineProfile
    rows: Sequence[PublishedRow]
    running: int
    recovering: int = 0
    others: Sequence[FleetRequest] = ()
    draining: bool = False
    about: Mapping[str, Any] | None = None
    limits: PlanLimits = NO_LIMITS

    def to_message(self) -> dict[str, Any]:
        """Plain values that any transport takes; `from_message` reads them back."""
        profile, capacity = self.profile, self.profile.capacity
        cache, drafts = profile.prefix_cache, profile.speculation
        return {
            "version": VERSION,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "at_s": self.at_s,
            "profile": {
                "name": profile.name,
                "step_time": [float(x) for x in profile.scaled_step_time.numbers],
                "capacity": [
                    capacity.max_num_seqs,
                    capacity.kv_tokens,
                    capacity.max_num_batched_tokens,
                ],
                "block_tokens": None if cache is None else cache.block_tokens,
                "speculation": None
                if drafts is None
                else [drafts.accepted_tokens, drafts.draft_tokens],
            },
            "rows": [_row_values(row) for row in self.rows],
            "running": self.running,
            "recovering": self.recovering,
            "others": [_other_values(other) for other in self.others],
            "draining": self.draining,
            "limits": [None if math.isinf(limit) else limit for limit in self.limits],
            "about": dict(self.about or {}),
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Published:
        """The inverse; ValueError for what is no message of this version."""
        if message.get("version") != VERSION:
            raise ValueError(
                f"an instance's state must be of version {VERSION}, got {message.get('version')!r}"
            )
        try:
            return cls(
                epoch=int(message["epoch"]),
                sequence=int(message["sequence"]),
                at_s=float(message["at_s"]),
                profile=_profile(message["profile"]),
                rows=[_row(values) for values in message["rows"]],
                running=int(message["running"]),
                recovering=int(message["recovering"]),
                others=[_other(values) for values in message["others"]],
                draining=bool(message["draining"]),
                about=dict(message["about"]),
                limits=_limits(*message["limits"]),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"no state of an instance: {error!r}") from error

    def state(self, taken_s: float) -> InstanceState:
        """The state on the reader's clock, on which it was taken at ``taken_s``."""
        since_s = np.array(
            [math.nan if r.since_first_token_s is None else r.since_first_token_s
             for r in self.rows]
        )  # fmt: skip
        return InstanceState(
            taken_s=taken_s,
            keys=np.array([row.key for row in self.rows], dtype=np.int64),
            running=self.running,
            recovering=self.recovering,
            generated_tokens=_column(row.generated_tokens for row in self.rows),
            prefill_left_tokens=_column(row.prefill_left_tokens for row in self.rows),
            cached_tokens=_column(row.cached_tokens for row in self.rows),
            first_token_s=taken_s - since_s,
            epoch=self.epoch,
            sequence=self.sequence,
            draining=self.draining,
            limits=self.limits,
        )

    def others_at(self, taken_s: float) -> list[FleetRequest]:
        """``others`` with their arrivals on the reader's clock."""
        return [replace(other, arrival_s=taken_s - other.arrival_s) for other in self.others]


class LagGauge:
    """How long a message was on its way, from its two clocks, which need not agree.

    The quickest of late is taken to have come at once; what another took longer is its lag. Clocks
    drift, so what was quick once is forgotten at ``drift`` seconds a second.
    """

    def __init__(self, drift: float = 1e-3) -> None:
        self._drift = drift
        self._least_s: float | None = None
        self._at_s = 0.0

    def lag_s(self, sent_s: float, received_s: float) -> float:
        """Seconds on the way, for times on the sender's clock and on ours."""
        offset_s = received_s - sent_s
        if self._least_s is None:
            self._least_s = offset_s
        else:
            crept_s = self._least_s + self._drift * max(0.0, received_s - self._at_s)
            self._least_s = min(offset_s, crept_s)
        self._at_s = received_s
        return offset_s - self._least_s


def _column(values: Any) -> FloatArray:
    return np.fromiter(values, dtype=np.float64)


def _row_values(row: PublishedRow) -> list[float]:
    since_s = row.since_first_token_s
    return [
        row.key,
        row.generated_tokens,
        row.prefill_left_tokens,
        row.cached_tokens,
        _NEVER if since_s is None else since_s,
    ]


def _row(values: Sequence[float]) -> PublishedRow:
    since_s = float(values[4])
    return PublishedRow(
        int(values[0]),
        float(values[1]),
        float(values[2]),
        float(values[3]),
        None if since_s == _NEVER else since_s,
    )


def _other_values(other: FleetRequest) -> list[Any]:
    return [
        other.key,
        other.arrival_s,
        other.prompt_tokens,
        [float(x) for x in other.quantiles],
        [None if math.isinf(x) else x for x in (other.ttft_s, other.tpot_s, other.e2e_s)],
        other.weight,
    ]


def _other(values: Sequence[Any]) -> FleetRequest:
    key, age_s, prompt_tokens, quantiles, objectives, weight = values
    ttft_s, tpot_s, e2e_s = (math.inf if x is None else float(x) for x in objectives)
    return FleetRequest(
        int(key),
        float(age_s),
        float(prompt_tokens),
        np.array(quantiles, dtype=np.float64),
        ttft_s,
        tpot_s,
        e2e_s,
        float(weight),
    )


def _limits(running: float | None, prefill_tokens: float | None, period: float) -> PlanLimits:
    inf = math.inf
    return PlanLimits(
        inf if running is None else float(running),
        inf if prefill_tokens is None else float(prefill_tokens),
        float(period),
    )


def _profile(values: Mapping[str, Any]) -> EngineProfile:
    block_tokens, drafts = values["block_tokens"], values["speculation"]
    step_time = dict(zip(NUMBERS, map(float, values["step_time"]), strict=True))
    return EngineProfile(
        str(values["name"]),
        StepTimeModel(**step_time, name=str(values["name"]), provenance="published"),
        Capacity(*(int(x) for x in values["capacity"])),
        "published",
        prefix_cache=None if block_tokens is None else PrefixCache(int(block_tokens)),
        speculation=None if drafts is None else Speculation(float(drafts[0]), int(drafts[1])),
    )
