"""What may be set of ``sa``: how far it looks, what it weighs, and what its search may change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Knobs of the planner; docs/scheduler.md says what each is worth."""

    horizon: float = 1.0  # of the rollout, in mean objectives (TTFT or e2e) of recent requests
    shortest_horizon_s: float = 8.0
    longest_horizon_s: float = 40.0
    most_waiting: int = 768  # rows that are planned; the rest follow by feasible-edf
    most_expected: int = 384
    start_quantile: float = 0.7  # length level the latest start is computed at
    spread: float = 0.05  # of a predicted time, as a share of how far ahead it is
    tpot_spread: float = 0.03
    latency_price: float = 0.02  # of a request's mean time, in attained requests
    tokens_price: float = 1.0  # of a request's mean work, in attained requests
    backlog_price: float = 5.0  # raises tokens_price when a horizon's worth of work waits
    bound_price: float = 12.0  # and when as much waits as the maximum wait has room for
    head: int = 48  # positions the search rearranges
    reach: int = 128  # positions it draws rows from
    losing: float = 0.02  # chance up to which a running request may lose its slot
    parts: tuple[str, ...] = ("order", "limits", "prefill", "period")  # to change; and "slots"
    uncertain_order: bool = False  # whether to search orders where lengths are uncertain, too
    trust: bool = True

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - {"order", "slots", "limits", "prefill", "period"}:
            raise ValueError(f"unknown parts {sorted(unknown)}")
        if not 0 < self.shortest_horizon_s <= self.longest_horizon_s or self.horizon <= 0:
            raise ValueError(
                "need horizon > 0 and 0 < shortest_horizon_s <= longest_horizon_s, got "
                f"{self.horizon}, {self.shortest_horizon_s}, {self.longest_horizon_s}"
            )
        if min(self.most_waiting, self.head, self.reach) < 2 or self.most_expected < 0:
            raise ValueError(
                "need most_waiting, head and reach of at least 2 and most_expected >= 0, got "
                f"{self.most_waiting}, {self.head}, {self.reach}, {self.most_expected}"
            )
