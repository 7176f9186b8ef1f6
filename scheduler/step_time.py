"""How long an engine step takes: the planner's and simulator's clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

COEFFICIENTS = ("base_s", "prefill_step_s", "prefill_token_s", "decode_seq_s", "context_token_s")
SECONDS = (*COEFFICIENTS, "eager_s")
NUMBERS = (*SECONDS, "graph_tokens")
MOST_WRONG = 4.0  # a clock that seems further off is held to this


def clock_ratio(measured_over_modelled: float, deadband: float) -> float:
    """By how much steps are to be taken for longer: bounded, exactly 1 within the deadband."""
    ratio = min(max(measured_over_modelled, 1.0 / MOST_WRONG), MOST_WRONG)
    return ratio if abs(ratio - 1.0) > deadband else 1.0


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """Seconds a step takes: linear in what the step does, but for a floor under eager ones.

    ``base + [prefill > 0]·prefill_step + prefill_tokens·prefill_token + decode_seqs·decode_seq
    + context_tokens·context_token``, where ``context_tokens`` is the sum over the decoding
    sequences of prompt + generated. With batch b and mean context l this is the paper's
    ``α_d·b·l + β_d·b + δ_d`` for decodes and ``γ_p·l + δ_p`` for prefills (arXiv 2504.14966,
    section 3 of its recalled form); its ``γ_d·l`` term never showed in an engine we measured.

    A GPU engine replays steps of up to ``graph_tokens`` tokens (prompt tokens and decoding
    sequences) as a CUDA graph. A larger one is launched kernel by kernel, which takes the
    processor ``eager_s`` however little there is to compute: a step with prompt tokens beyond
    takes at least that. 0 where there is no such floor.
    """

    base_s: float
    prefill_step_s: float
    prefill_token_s: float
    decode_seq_s: float
    context_token_s: float
    eager_s: float = 0.0
    graph_tokens: float = 0.0
    name: str = "unnamed"
    provenance: str = "unknown"

    def __post_init__(self) -> None:
        for name in NUMBERS:
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if self.base_s + self.decode_seq_s <= 0:
            raise ValueError("a step must take time: base_s + decode_seq_s is 0")

    @property
    def coefficients(self) -> tuple[float, float, float, float, float]:
        """Of the linear part, in the order of COEFFICIENTS."""
        return (
            self.base_s,
            self.prefill_step_s,
            self.prefill_token_s,
            self.decode_seq_s,
            self.context_token_s,
        )

    @property
    def numbers(self) -> tuple[float, ...]:
        """The whole model in the order of NUMBERS, as the kernels take it."""
        return (*self.coefficients, self.eager_s, self.graph_tokens)

    def slowed(self, factor: float) -> StepTimeModel:
        """Every step ``factor`` times as long; itself where that is 1."""
        if factor == 1.0:
            return self
        return replace(self, **{name: factor * getattr(self, name) for name in SECONDS})

    def more_s(self, prefill_tokens: float, decode_seqs: float, decodes_s: float) -> float:
        """What prompt tokens add to a step whose decodes take ``decodes_s``."""
        added_s = self.prefill_step_s + self.prefill_token_s * prefill_tokens
        if prefill_tokens + decode_seqs > self.graph_tokens:
            return max(added_s, self.eager_s - decodes_s)
        return added_s

    def step_s(self, prefill_tokens: float, decode_seqs: float, context_tokens: float) -> float:
        """Duration of one step in seconds."""
        prefill = self.prefill_step_s if prefill_tokens > 0 else 0.0
        linear_s = (
            self.base_s
            + prefill
            + self.prefill_token_s * prefill_tokens
            + self.decode_seq_s * decode_seqs
            + self.context_token_s * context_tokens
        )
        eager = prefill_tokens > 0 and prefill_tokens + decode_seqs > self.graph_tokens
        return max(linear_s, self.eager_s) if eager else linear_s

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a profile file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StepTimeModel:
        """The inverse of to_dict; unknown or missing keys raise ValueError."""
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"step_time has unknown keys {sorted(unknown)}")
        if missing := set(COEFFICIENTS) - set(values):
            raise ValueError(f"step_time lacks {sorted(missing)}")
        return cls(**dict(values))
