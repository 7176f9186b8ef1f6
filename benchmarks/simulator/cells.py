"""The arena's cells in the simulator: a workload, a load, arrivals, lengths and a seed.

``learned`` is the default predictor's word on the very prompts, which lie on the side of the split
it was not trained on; it is trained once a source and kept under .lengthwise/grid-predictors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.profile import EngineProfile, load_profile
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.training.bench.comparison.workload_source import (
    WorkloadSource,
    capacity_rps,
    length_rows,
    open_workload,
    to_sim,
)

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
def predictor_of(source: str) -> LengthPredictor:
    """The default predictor of a source, trained once on the sides the arena does not draw from."""
    directory = PREDICTORS / source
    if not (directory / "card.json").is_file():
        parts = split_table(load_table(source))
        fit_predictor(parts["train"], parts["calibration"]).save(directory)
    return LengthPredictor.load(directory)


@lru_cache(maxsize=16)
def source_of(workload: str, arrivals: str, profile: str) -> WorkloadSource:
    """Where a cell's requests come from."""
    return open_workload(workload, arrivals=arrivals, profile=load_profile(profile))


@lru_cache(maxsize=16)
def load_one_rps(workload: str, profile: str) -> float:
    """Requests a second that are load 1, the same for every kind of arrivals."""
    return capacity_rps(source_of(workload, "poisson", profile), load_profile(profile))


def build(cell: Cell) -> tuple[SimWorkload, EngineProfile]:
    """The cell's workload and engine; the same requests and arrivals for every lengths kind."""
    source = source_of(cell.workload, cell.arrivals, cell.profile)
    rate_rps = cell.load * load_one_rps(cell.workload, cell.profile)
    requests = source.draw(cell.requests, rate_rps, cell.seed)
    predictor = predictor_of(source.source_label) if cell.lengths == "learned" else None
    rows, levels = length_rows(requests, cell.lengths, predictor)
    return to_sim(requests, rows, levels), load_profile(cell.profile)
