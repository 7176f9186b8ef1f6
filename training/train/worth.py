"""What a predictor is worth to the scheduler: SLO attainment in the simulator with its lengths.

Errors are counted in tokens by the other metrics; here they are counted in requests. The same
workload is simulated four times, with lengths unknown (`none`), one Gaussian a class (`class`, the
paper's profile), predicted (`learned`) and true (`oracle`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lengthwise.data.arena.workloads import ARENA
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.comparison.arms import parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, capacity_rps
from lengthwise.training.bench.runners.simulator_runner import SimulatorRunner, lengths_of

if TYPE_CHECKING:
    from lengthwise.data.table import PromptTable
    from lengthwise.predictor.model import LengthPredictor

LENGTHS = ("none", "class", "learned", "oracle")
PROFILE = "tiny-cpu"
_PREFERRED = ("mixed", "paper", "tails")


def decision_value(
    predictor: LengthPredictor,
    test: PromptTable,
    *,
    workload: str | None = None,
    load: float = 1.4,
    requests: int = 2000,
    seeds: int = 1,
) -> dict[str, Any] | None:
    """Attainment by source of lengths, and the share of oracle's gain over class that is kept.

    `test` holds rows the predictor has not seen, with text. None where no workload of the arena
    finds its classes among them.
    """
    name = workload or _workload_for(test)
    if name is None or test["prompt"].isna().any():
        return None
    source = WorkloadSource(name, str(test.attrs.get("source_label")), test, split=None)
    arms = parse_arms(",".join(f"sa:{lengths}" for lengths in LENGTHS))
    profile = load_profile(PROFILE)
    outcome = compare(
        source,
        BenchSettings(arms, load=load, requests=requests, repeats=seeds),
        SimulatorRunner(profile, lengths_of(predictor)),
        capacity_rps=capacity_rps(source, profile),
    )
    attained = {arm.lengths: arm.attainment for arm in outcome.result.arms}
    gain = attained["oracle"] - attained["class"]
    return {
        "workload": name,
        "load": load,
        "requests": requests * seeds,
        "attainment": attained,
        "kept": (attained["learned"] - attained["class"]) / gain if gain > 0 else None,
    }


def _workload_for(test: PromptTable) -> str | None:
    classes = set(test["slo_class"])
    for name in _PREFERRED:
        if {c.slo.slo_class for c in ARENA[name].classes} <= classes:
            return name
    return None
