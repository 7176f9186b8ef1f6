"""Simulator against engine: finished benches, played again in the simulator.

    python -m benchmarks.simulator.validation --profile .lengthwise/profiles/tiny.json \\
        --predictor DIR runs/bench-*/result.json

The same requests at the same times on the bench's calibrated profile; stock vLLM is arrival order.
Asked for: attainment within 3 points, mean e2e within 10 %.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import finish, plain_parser, print_table
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.profile import EngineProfile, load_profile
from lengthwise.training.bench.comparison.arms import Arm
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import open_workload
from lengthwise.training.bench.results.result import BenchResult, read_result
from lengthwise.training.bench.runners.simulator_runner import SimulatorRunner, lengths_of

COLUMNS = ("workload", "load", "arm", "met, engine", "met, simulator", "points",
           "mean e2e s, engine", "simulator", "difference")  # fmt: skip


def replayed(
    result: BenchResult, profile: EngineProfile, predictor: LengthPredictor
) -> BenchResult:
    """The bench's arms on its own requests, in the simulator; in the bench's order."""
    run = result.run
    arms = tuple(
        Arm("fcfs" if arm.policy == "stock" else arm.policy, arm.lengths, arm.label)
        for arm in result.arms
    )
    settings = BenchSettings(
        arms, result.workload, arrivals=run["arrivals"], load=result.load,
        requests=run["requests_per_repeat"], repeats=run["repeats"], seed=run["first_seed"],
    )  # fmt: skip
    source = open_workload(result.workload, arrivals=run["arrivals"], profile=profile)
    runner = SimulatorRunner(profile, lengths_of(predictor))
    return compare(source, settings, runner, capacity_rps=run["capacity_rps"]).result


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="result.json of finished benches")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--predictor", type=Path, required=True)
    options = parser.parse_args()
    profile, predictor = load_profile(options.profile), LengthPredictor.load(options.predictor)
    rows, found = [], []
    for path in options.results:
        measured = read_result(path)
        modeled = replayed(measured, profile, predictor)
        for ours, theirs in zip(measured.arms, modeled.arms, strict=True):
            points = 100 * (theirs.attainment - ours.attainment)
            ratio = theirs.mean_e2e_s / ours.mean_e2e_s
            place = {"workload": measured.workload, "load": measured.load, "arm": ours.label}
            found.append(place | {"points": points, "e2e_ratio": ratio})
            rows.append(
                [
                    *place.values(),
                    f"{ours.attainment:.1%}", f"{theirs.attainment:.1%}", f"{points:+.1f}",
                    f"{ours.mean_e2e_s:.1f}", f"{theirs.mean_e2e_s:.1f}",
                    f"{100 * (ratio - 1):+.0f} %",
                ]
            )  # fmt: skip
    print_table(COLUMNS, rows)
    finish("validation", found)


if __name__ == "__main__":
    main()
