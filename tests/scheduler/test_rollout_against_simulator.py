"""The rollout foretells what the simulator then does, shape by shape."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.simulator.planner import rollout_error as r
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.comparison.workload_source import (
    capacity_rps,
    length_rows,
    open_workload,
    to_sim,
)

EXACT = [
    ("shape-many-slots", "mixed"),
    ("shape-many-slots", "agents"),
    ("shape-little-memory", "mixed"),
    ("shape-slow-steps", "mixed"),
    ("shape-long-context", "mixed"),
    ("tiny-cpu", "mixed"),
    ("tiny-cpu", "documents"),
]
HORIZON_S = 10.0


def errors(shape: str, workload: str, moments=(0.4, 0.7), requests: int = 500, load: float = 1.3):
    """By kind of plan, on the synthetic corpus."""
    profile = load_profile(shape)
    source = open_workload(workload, source="synthetic", profile=profile)
    drawn = source.draw(requests, load * capacity_rps(source, profile), 0)
    sim = to_sim(drawn, *length_rows(drawn, "oracle", None))
    found: dict[str, list[r.Errors]] = {}
    for kind, parts in r.PLANS.items():
        for share in moments:
            at_s = share * float(sim.arrival_s[-1])
            policy = r.OnePlan(sim, profile, at_s, HORIZON_S, np.random.default_rng(1), **parts)
            if (one := r.errors_at(sim, profile, policy)) is not None:
                found.setdefault(kind, []).append(one)
    return {kind: r.summary(several) for kind, several in found.items()}


@pytest.mark.parametrize(("shape", "workload"), EXACT)
def test_without_cache_and_speculation_it_is_exact_but_for_memory_that_runs_out(shape, workload):
    found = errors(shape, workload)
    assert sum(figures["rows"] for figures in found.values()) > 50
    for kind, figures in found.items():
        for name in ("ttft", "tpot", "e2e"):
            assert figures[f"{name}_p50"] < 1e-6, kind
        assert figures["e2e_p95"] < 10.0, kind
        assert abs(figures["decided"]) < 1.0, kind
        assert figures["ended_ratio"] == pytest.approx(1.0, abs=0.06), kind


@pytest.mark.parametrize(
    ("shape", "workload"), [("shape-prefix-cache", "agents"), ("shape-speculation", "mixed")]
)
def test_with_cache_or_speculation_it_is_near(shape, workload):
    for kind, figures in errors(shape, workload).items():
        if kind == "slots":  # it leaves out that a row may find its own tokens again
            continue
        for name in ("ttft", "tpot", "e2e"):
            assert figures[f"{name}_p50"] < 2.0, kind
        assert figures["e2e_p95"] < 20.0, kind
        assert abs(figures["decided"]) < 3.0, kind
        assert figures["ended_ratio"] == pytest.approx(1.0, abs=0.06), kind
