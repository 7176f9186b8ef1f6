"""What a predictor is worth to the scheduler: SLO attainment in the simulator with its lengths.

Errors are counted in tokens by the other metrics; here they are counted in requests. The same
workload is simulated four times, with lengths unknown (`none`), one Gaussian a class (`class`, the
paper's profile), predicted (`learned`) and true (`oracle`).

How many requests are simulated is a budget of planning, not of seconds, so that the figures do not
depend on the machine: four for each row of the test side, within bounds. More would only draw the
same prompts again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lengthwise.data.arena.workloads import ARENA
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.comparison.arms import parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import Tick, compare
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, capacity_rps
from lengthwise.training.bench.runners.simulator_runner import SimulatorRunner, lengths_of
from lengthwise.training.console import SilentSteps, Steps

if TYPE_CHECKING:
    from lengthwise.data.table import PromptTable
    from lengthwise.predictor.model import LengthPredictor

LENGTHS = ("none", "class", "learned", "oracle")
PROFILE = "tiny-cpu"
_PREFERRED = ("mixed", "paper", "tails")
_MEANING = {
    "none": "lengths unknown",
    "class": "one length a class",
    "learned": "predicted lengths",
    "oracle": "true lengths",
}
_REQUESTS_A_ROW = 4
# in fewer no queue builds up, and every source of lengths attains the same
_LEAST_REQUESTS, MOST_REQUESTS = 1000, 2000


def decision_value(
    predictor: LengthPredictor,
    test: PromptTable,
    *,
    workload: str | None = None,
    load: float = 1.4,
    requests: int | None = None,
    seeds: int = 1,
    steps: Steps | None = None,
) -> dict[str, Any] | None:
    """Attainment by source of lengths, and the share of oracle's gain over class that is kept.

    `test` holds rows the predictor has not seen, with text. `requests` None: as many as its size
    calls for (`requests_for`). None where no workload of the arena finds its classes among them.
    """
    steps = steps or SilentSteps()
    name = workload or _workload_for(test)
    if name is None or test["prompt"].isna().any():
        return None
    source = WorkloadSource(name, str(test.attrs.get("source_label")), test, split=None)
    arms = parse_arms(",".join(f"sa:{lengths}" for lengths in LENGTHS))
    profile = load_profile(PROFILE)
    count = requests_for(len(test)) if requests is None else requests

    def begin(label: str, repeat: int, number: int) -> Tick:
        steps.step(f"{number:,} requests with {_MEANING[label.partition(':')[2]]}", number)
        return steps.advance

    steps.step("measuring what load 1 is")
    outcome = compare(
        source,
        BenchSettings(arms, load=load, requests=count, repeats=seeds),
        SimulatorRunner(profile, lengths_of(predictor)),
        capacity_rps=capacity_rps(source, profile),
        on_run=begin,
    )
    attained = {arm.lengths: arm.attainment for arm in outcome.result.arms}
    gain = attained["oracle"] - attained["class"]
    return {
        "workload": name,
        "load": load,
        "requests": count * seeds,
        "attainment": attained,
        "kept": (attained["learned"] - attained["class"]) / gain if gain > 0 else None,
    }


def requests_for(rows: int) -> int:
    """How many requests are simulated for a test side of so many rows."""
    return min(MOST_REQUESTS, max(_LEAST_REQUESTS, _REQUESTS_A_ROW * rows))


def _workload_for(test: PromptTable) -> str | None:
    classes = set(test["slo_class"])
    for name in _PREFERRED:
        if {c.slo.slo_class for c in ARENA[name].classes} <= classes:
            return name
    return None
