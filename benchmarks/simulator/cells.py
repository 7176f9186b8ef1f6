"""The arena's cells for the simulator: a workload, a load, arrivals, lengths and a seed.

Shared by the grid, the bound and the studies. ``learned`` is the default predictor's word on the
very prompts, which lie on the side of the split it was not trained on; it is trained once a
source and kept under .lengthwise/grid-predictors.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lengthwise.data.arena.workloads import arena_workload, build_workload
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.profile import EngineProfile, load_profile
from lengthwise.scheduler.simulator.capacity import saturated_rps
from lengthwise.scheduler.simulator.workload import SimResult, SimWorkload

LEVELS = np.array((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99))
NORMAL = np.array([statistics.NormalDist().inv_cdf(p) for p in LEVELS])
LOADS = (0.6, 0.9, 1.1, 1.4, 2.0)
WORKLOADS = ("paper", "mixed", "tails")
ARRIVALS = ("poisson", "azure")
LENGTHS = ("oracle", "learned", "class")
PREDICTORS = Path(".lengthwise") / "grid-predictors"


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting every policy is measured in."""

    workload: str
    load: float
    arrivals: str
    lengths: str
    seed: int
    requests: int = 2000
    profile: str = "tiny-cpu"


@lru_cache(maxsize=4)
def _table(source: str):
    return load_table(source)


@lru_cache(maxsize=4)
def predictor_of(source: str) -> LengthPredictor:
    """The default predictor of a source, trained once on the sides the arena does not draw from."""
    directory = PREDICTORS / source
    if not (directory / "card.json").is_file():
        parts = split_table(_table(source))
        fit_predictor(parts["train"], parts["calibration"]).save(directory)
    return LengthPredictor.load(directory)


@lru_cache(maxsize=64)
def _drawn(workload: str, arrivals: str, seed: int, requests: int):
    table = _table(arena_workload(workload).default_source)
    return build_workload(workload, table, requests, 1.0, seed, arrivals)


@lru_cache(maxsize=64)
def _learned(workload: str, arrivals: str, seed: int, requests: int) -> np.ndarray:
    """What the predictor says of the cell's prompts, ``(n, 12)``."""
    drawn = _drawn(workload, arrivals, seed, requests)
    predictor = predictor_of(arena_workload(workload).default_source)
    assert np.allclose(predictor.levels, LEVELS)
    return predictor.predict(
        [r.prompt for r in drawn],
        [r.slo.slo_class for r in drawn],
        [r.readable_tokens for r in drawn],
    ).quantiles


@lru_cache(maxsize=64)
def _unit_workload(workload: str, arrivals: str, seed: int, requests: int, longest: int):
    """The cell's requests arriving at 1 a second, lengths unknown."""
    drawn = _drawn(workload, arrivals, seed, requests)

    def limits(name: str) -> np.ndarray:
        values = [getattr(r.slo, name) for r in drawn]
        return np.array([np.inf if v is None else v for v in values])

    classes = sorted({r.slo.slo_class for r in drawn})
    output = np.minimum([r.output_tokens for r in drawn], longest).astype(np.int64)
    return SimWorkload(
        arrival_s=np.array([r.arrival_s for r in drawn]),
        prompt_tokens=np.array([r.prompt_tokens for r in drawn], dtype=np.int64),
        output_tokens=output,
        ttft_s=limits("ttft_s"),
        tpot_s=limits("tpot_s"),
        e2e_s=limits("e2e_s"),
        weight=np.ones(requests),
        class_id=np.array([classes.index(r.slo.slo_class) for r in drawn], dtype=np.int64),
        quantiles=np.repeat(output[:, None].astype(float), len(LEVELS), axis=1),
        levels=LEVELS,
    )


def length_rows(workload: SimWorkload, cell: Cell) -> np.ndarray:
    """Quantile rows ``(n, 12)`` of the cell's kind of knowledge."""
    truth = workload.output_tokens.astype(float)
    if cell.lengths == "oracle":
        return np.repeat(truth[:, None], len(LEVELS), axis=1)
    if cell.lengths == "learned":
        return _learned(cell.workload, cell.arrivals, cell.seed, cell.requests)
    rows = np.empty((len(truth), len(LEVELS)))
    for group in np.unique(workload.class_id):
        own = workload.class_id == group
        rows[own] = truth[own].mean() + truth[own].std() * NORMAL
    return np.maximum(rows, 1.0)


@lru_cache(maxsize=16)
def capacity_rps(workload: str, profile: str) -> float:
    """Requests a second the profile's engine completes of a workload."""
    engine = load_profile(profile)
    return saturated_rps(_unit_workload(workload, "poisson", 1_000_003, 1500, 4096), engine)


def build(cell: Cell) -> tuple[SimWorkload, EngineProfile]:
    """The cell's workload and engine; the same requests and arrivals for every lengths kind."""
    unit = _unit_workload(cell.workload, cell.arrivals, cell.seed, cell.requests, 4096)
    rate = cell.load * capacity_rps(cell.workload, cell.profile)
    return replace(
        unit,
        arrival_s=unit.arrival_s / rate,
        quantiles=length_rows(unit, cell),
    ), load_profile(cell.profile)


def measures(workload: SimWorkload, result: SimResult) -> dict[str, float]:
    """What is reported of a run."""
    met = result.met(workload)
    e2e, ttft = result.e2e_s(workload), result.ttft_s(workload)
    waits = result.admitted_s - workload.arrival_s
    plan_ms = 1e3 * np.array(result.plan_s or [0.0])
    return {
        "attainment": float(met.mean()),
        "mean_e2e_s": float(e2e.mean()),
        "p99_e2e_s": float(np.quantile(e2e, 0.99)),
        "mean_ttft_s": float(ttft.mean()),
        "g_per_s": float(met.sum() / e2e.sum()),
        "output_tokens_per_s": float(result.output_tokens.sum() / result.end_s),
        "max_wait_s": float(waits.max()),
        "plan_ms_p50": float(np.median(plan_ms)),
        "plan_ms_p99": float(np.quantile(plan_ms, 0.99)),
        "longest_queue": float(max((q for _, q in result.queue_len), default=0)),
    }
