"""Simulator against engine: the arms of finished benches, played again on their calibrated profile.

python -m benchmarks.simulator.validation --profile .lengthwise/profiles/tiny.json \
    --predictor DIR runs/bench-*/result.json

The same requests at the same times; stock vLLM is arrival order. Asked for: attainment within 3
points, mean e2e within 10 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.common import finish, print_table
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.training.bench.workload import length_rows, open_workload, to_sim


def read_result(path: Path) -> dict:  # type: ignore[type-arg]
    """A bench's document: result.json, or a log whose last JSON line it is."""
    lines = [line for line in path.read_text().splitlines() if line.startswith('{"provenance"')]
    return json.loads(lines[-1] if lines else path.read_text())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("results", type=Path, nargs="+")
    arguments.add_argument("--profile", required=True)
    arguments.add_argument("--predictor", type=Path, required=True)
    options = arguments.parse_args()
    profile, predictor = load_profile(options.profile), LengthPredictor.load(options.predictor)
    rows, found = [], []
    for path in options.results:
        result = read_result(path)
        run, source = result["run"], open_workload(result["workload"])
        for arm in result["arms"]:
            policy = "fcfs" if arm["policy"] == "stock" else arm["policy"]
            met, e2e = [], []
            for repeat in range(run["repeats"]):
                rate_rps = result["load"] * run["capacity_rps"]
                requests = source.draw(
                    run["requests_per_repeat"], rate_rps, run["first_seed"] + repeat
                )
                lengths = length_rows(requests, arm["lengths"], predictor)
                workload = to_sim(requests, *lengths)
                played = simulate(workload, make_policy(policy), profile)
                met.append(played.met(workload))
                e2e.append(played.e2e_s(workload))
            modeled = float(np.mean(met)), float(np.mean(e2e))
            points = 100 * (modeled[0] - arm["attainment"])
            ratio = modeled[1] / arm["mean_e2e_s"]
            label = f"{arm['policy']}:{arm['lengths']}"
            found.append({"workload": result["workload"], "load": result["load"], "arm": label}
                | {"points": points, "e2e_ratio": ratio})  # fmt: skip
            rows.append(
                [
                    result["workload"],
                    f"{result['load']:g}",
                    label,
                    f"{arm['attainment']:.1%}",
                    f"{modeled[0]:.1%}",
                    f"{points:+.1f}",
                    f"{arm['mean_e2e_s']:.1f}",
                    f"{modeled[1]:.1f}",
                    f"{100 * (ratio - 1):+.0f} %",
                ]
            )
    head = ["workload", "load", "arm", "met, engine", "met, simulator", "points"]
    print_table([*head, "mean e2e s, engine", "simulator", "difference"], rows)
    finish("scheduler_validation", found)


if __name__ == "__main__":
    main()
