"""What learning a new served model is worth: attainment in the simulator, by what is known of it.

    python -m benchmarks.predictor.new_model_slo --pack llama31_8b --foreign gpt35 \\
        --workload tails --finished 300

`sa` plans with one length a class, a foreign predictor as it is, the same corrected in level and
spread, with the residual too (what a server does), a predictor trained on the finished requests
alone, and true lengths. The requests are the test side's, which nobody has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pandas as pd

from benchmarks.common import finish, interval, note, plain_parser, print_table
from benchmarks.predictor.learning_curve import mended, new_model, retrained, taught
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.model import LengthPredictor
from lengthwise.predictor.serving.online_lengths import OnlineLengths
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.comparison.arms import parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, capacity_rps
from lengthwise.training.bench.runners.simulator_runner import SimulatorRunner, lengths_of

SHAPES = ("tiny-cpu", "h200-llama-11b", "shape-few-slots", "shape-many-slots")


@dataclass(frozen=True, slots=True)
class Mended:
    """A predictor as the engine's planner hears it: corrected by what was learned."""

    foreign: LengthPredictor
    lengths: OnlineLengths

    @property
    def levels(self) -> tuple[float, ...]:
        return self.foreign.levels

    def predict(
        self, prompts: Sequence[str], classes: Sequence[str], tokens: Any = None
    ) -> LengthDistribution:
        table = pd.DataFrame({"prompt": prompts, "slo_class": classes})
        return mended(self.foreign, self.lengths, table)


def attained(
    predictor: Any, lengths: str, source: WorkloadSource, shape: str, options: SimpleNamespace
) -> float:
    """Share of requests that met their objectives."""
    profile = load_profile(shape)
    outcome = compare(
        source,
        BenchSettings(
            parse_arms(f"sa:{lengths}"),
            load=options.load,
            requests=options.requests,
            seed=options.seed,
        ),
        SimulatorRunner(profile, lengths_of(predictor)),
        capacity_rps=capacity_rps(source, profile),
    )
    return float(outcome.result.arms[0].attainment)


def main() -> None:
    arguments = plain_parser(__doc__)
    arguments.add_argument("--pack", default="llama31_8b")
    arguments.add_argument("--foreign", default="gpt35")
    arguments.add_argument("--workload", default="tails")
    arguments.add_argument("--shapes", nargs="+", default=list(SHAPES))
    arguments.add_argument("--finished", type=int, default=300)
    arguments.add_argument("--load", type=float, default=1.4)
    arguments.add_argument("--requests", type=int, default=500)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--jobs", type=int, default=1, help="LightGBM threads")
    given = arguments.parse_args()
    lines = []
    for seed in given.seeds:
        foreign, stream, test = new_model(given.pack, given.foreign, seed, given.jobs)
        seen = stream.iloc[: given.finished]
        source = WorkloadSource(given.workload, given.pack, test, split=None)
        ways: dict[str, tuple[Any, str]] = {
            "class": (retrained(seen, seed, given.jobs), "class"),
            "foreign": (foreign, "learned"),
            "level": (Mended(foreign, taught(foreign, seen, residual=False)), "learned"),
            "online": (Mended(foreign, taught(foreign, seen, residual=True)), "learned"),
            "retrained": (retrained(seen, seed, given.jobs), "learned"),
            "oracle": (None, "oracle"),
        }
        options = SimpleNamespace(load=given.load, requests=given.requests, seed=seed)
        for shape in given.shapes:
            note(f"seed {seed}, {shape}")
            lines.append(
                {"seed": seed, "shape": shape}
                | {name: attained(*way, source, shape, options) for name, way in ways.items()}
            )
    frame = pd.DataFrame(lines)
    names = list(frame.columns[2:])
    rows = [
        [shape, *(f"{100 * value:.1f}" for value in part[names].mean())]
        for shape, part in frame.groupby("shape")
    ]
    rows.append(["all", *(f"{100 * value:.1f}" for value in frame[names].mean())])
    print_table(["shape", *names], rows)
    gain, half = interval((frame["online"] - frame["level"]).tolist())
    print(f"online - level: {100 * gain:+.1f} +- {100 * half:.1f} points over {len(frame)} runs")
    finish("new_model_slo", lines)


if __name__ == "__main__":
    main()
