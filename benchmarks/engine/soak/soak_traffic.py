"""What the soak sends: requests of a mixed workload, at Poisson arrivals with bursts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.engine.accounts import Asked, ask
from lengthwise.data.arena.workloads import ArenaClass, arena_workload, build_workload
from lengthwise.data.sources.load import load_table
from lengthwise.data.table import PromptTable

WORKLOAD = "mixed"
CALM, BURST = 0.75, 2.0  # multiples of the capacity
BURST_EVERY_S, BURST_S = 60.0, 8.0
LEAVE_EVERY = 20


class Traffic:
    """Endless requests of the arena's mixed workload, answers scaled to a mean length."""

    def __init__(self, mean_tokens: float, seed: int) -> None:
        arena = arena_workload(WORKLOAD)
        table: PromptTable = load_table(arena.default_source)
        self.label = arena.default_source
        drawn = build_workload(WORKLOAD, table, 2000, 1.0, seed)
        scale = mean_tokens / np.mean([one.output_tokens for one in drawn])
        self.requests = [one for one in drawn if one.prompt and one.prompt_tokens < 400]
        self.lengths = [max(1, round(one.output_tokens * scale)) for one in self.requests]
        self.scale = float(scale)
        self.classes: tuple[ArenaClass, ...] = arena.classes

    def asked(self, i: int, prefix: str = "soak") -> Asked:
        """Request ``i``; one in twenty leaves, by turns before the first token and midway."""
        k = i % len(self.requests)
        leaves = 2 * (i // LEAVE_EVERY % 2) if i % LEAVE_EVERY == LEAVE_EVERY - 1 else None
        one = self.requests[k]
        return ask(
            f"{prefix}-{i}",
            str(k),
            self.lengths[k],
            prompt=one.prompt,
            leaves_after=leaves if prefix == "soak" else None,
            **one.slo.to_xargs(),
        )

    def replay_table(self, path: Path) -> Path:
        """The lengths as the replay processor reads them."""
        path.write_text(json.dumps({str(k): n for k, n in enumerate(self.lengths)}))
        return path


def arrivals(rate_rps: float, seed: int) -> Iterator[float]:
    """Poisson arrivals at ``CALM`` times the rate, ``BURST`` times in bursts, by thinning."""
    rng = np.random.default_rng(seed)
    now_s = 0.0
    while True:
        now_s += float(rng.exponential(1.0 / (BURST * rate_rps)))
        bursting = now_s % BURST_EVERY_S > BURST_EVERY_S - BURST_S
        if bursting or rng.random() < CALM / BURST:
            yield now_s


def mean_load() -> float:
    """Offered load over capacity, averaged over calm and burst."""
    return (CALM * (BURST_EVERY_S - BURST_S) + BURST * BURST_S) / BURST_EVERY_S
