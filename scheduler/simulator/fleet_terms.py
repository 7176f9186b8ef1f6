"""What a simulated fleet is asked to play, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.sim_workload import SimWorkload, met_of


@dataclass(frozen=True, slots=True)
class FleetPlace:
    """An instance of the fleet: its kind, and when what happens to it, seconds.

    It joins and dies. Within ``hangs_s``, from and to, it does and says nothing. From ``slows_s``
    on a step takes ``slows_by`` times as long; policy and router are told ``refit_s`` later. At
    ``restarts_s`` it begins anew, empty. ``believed`` is the profile that router and policy take
    it for, where that is not the true one.
    """

    profile: EngineProfile
    joins_s: float = 0.0
    dies_s: float = np.inf
    believed: EngineProfile | None = None
    hangs_s: tuple[float, float] = (np.inf, np.inf)
    slows_s: float = np.inf
    slows_by: float = 3.0
    refit_s: float = np.inf
    restarts_s: float = np.inf

    def __post_init__(self) -> None:
        if not 0.0 <= self.joins_s < self.dies_s:
            raise ValueError(
                f"an instance joins at 0 s or later and dies after, got {self.joins_s} "
                f"and {self.dies_s}"
            )
        from_s, to_s = self.hangs_s
        if not self.joins_s <= from_s <= to_s or (from_s < to_s == self.dies_s == np.inf):
            raise ValueError(
                "hangs_s must begin after joins_s and end, or the instance must die, got "
                f"{self.hangs_s}"
            )
        if not (self.slows_by > 0.0 and np.isfinite(self.slows_by)) or not self.refit_s >= 0.0:
            raise ValueError(
                "slows_by must be above 0 and refit_s not negative, got "
                f"{self.slows_by} and {self.refit_s}"
            )
        if not min(self.slows_s, self.restarts_s) >= self.joins_s:
            raise ValueError(
                "slows_s and restarts_s must not be before joins_s, got "
                f"{self.slows_s} and {self.restarts_s}"
            )


@dataclass(frozen=True, slots=True)
class FleetConditions:
    """How states and requests travel.

    ``state_loss`` is the share of states that never come; within ``dark_s``, from and to, none
    does. Beyond ``state_delay_s`` a state takes up to ``state_jitter_s``, so that later ones come
    first. A request takes ``hop_s`` to its instance; a death is found out ``detect_s`` later.
    """

    state_period_s: float = 0.2
    state_delay_s: float = 0.0
    state_jitter_s: float = 0.0
    state_loss: float = 0.0
    dark_s: tuple[float, float] = (np.inf, np.inf)
    hop_s: float = 0.0
    detect_s: float = 0.0
    tick_s: float = 0.05  # how often what is held back is looked at again

    def __post_init__(self) -> None:
        if self.state_period_s <= 0 or self.tick_s <= 0:
            raise ValueError(
                "state_period_s and tick_s must be above 0, got "
                f"{self.state_period_s} and {self.tick_s}"
            )
        if min(self.state_delay_s, self.state_jitter_s, self.hop_s, self.detect_s) < 0:
            raise ValueError(
                "state_delay_s, state_jitter_s, hop_s and detect_s must not be negative, got "
                f"{self.state_delay_s}, {self.state_jitter_s}, {self.hop_s}, {self.detect_s}"
            )
        if not 0 <= self.state_loss <= 1:
            raise ValueError(f"state_loss must lie in [0, 1], got {self.state_loss}")


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What happened, ``(n,)``: times on the workload's clock, NaN where not reached.

    ``instance`` is where each request was sent last, -1 for nowhere; ``sends`` how often it was
    sent. ``lost`` were begun by an instance that died, or found none alive. ``decide_s`` is what
    each decision took on this machine.
    """

    admitted_s: FloatArray
    first_token_s: FloatArray
    finish_s: FloatArray
    output_tokens: IntArray
    instance: IntArray
    sent_s: FloatArray
    sends: IntArray
    lost: BoolArray
    decide_s: list[float]
    plan_s: list[float]
    steps: IntArray
    preemptions: int
    end_s: float
    router: dict[str, object] = field(default_factory=dict)

    def met(self, workload: SimWorkload) -> BoolArray:
        """Whether all objectives of each request hold; none of a lost one."""
        every = np.arange(len(workload))
        kept = met_of(workload, every, self.first_token_s, self.finish_s, self.output_tokens)
        return kept & np.isfinite(self.finish_s)


def pooled_profile(profile: EngineProfile, instances: int) -> EngineProfile:
    """One engine of so many times the slots, memory and budget, at the same full batch's pace.

    What a fleet of equal instances would do if nothing had to be placed: no router can do better
    with the same policy but by luck.
    """
    step, capacity = profile.step_time, profile.capacity
    return replace(
        profile,
        name=f"{profile.name}-pooled-{instances}",
        step_time=replace(
            step,
            prefill_token_s=step.prefill_token_s / instances,
            decode_seq_s=step.decode_seq_s / instances,
            context_token_s=step.context_token_s / instances,
            graph_tokens=step.graph_tokens * instances,
        ),
        capacity=Capacity(
            capacity.max_num_seqs * instances,
            capacity.kv_tokens * instances,
            capacity.max_num_batched_tokens * instances,
        ),
    )
