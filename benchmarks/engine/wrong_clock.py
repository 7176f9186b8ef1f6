"""A device whose every step takes longer than the planner's profile says, in warped time.

    python -m benchmarks.engine.wrong_clock --shapes h200-llama-11b --factors 1 1.14

vLLM's own scheduler on an emulated device; requests and objectives are those of the profile that is
believed, so a slow device has less room for them. Stock vLLM, the best rules and ``sa`` with true
lengths on the same requests. What corrects the clock is ``engine/observed/step_clock.py``.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.common import finish, note, plain_parser, print_table
from benchmarks.simulator.shapes import Run, requests_of
from lengthwise.data.errors import InputError
from lengthwise.scheduler.profile import EngineProfile, load_profile
from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerProcess
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model
from lengthwise.training.bench.comparison.arms import STOCK, Arm
from lengthwise.training.bench.runners.simulator_runner import lengths_of
from lengthwise.training.bench.runners.warped_runner import WarpedRunner, WarpSettings
from lengthwise.training.workspace import Workspace

POLICIES = (STOCK, "feasible-edf", "feasible-sjf", "sa")


def slowed(profile: EngineProfile, factor: float, folder: Path) -> tuple[str, EngineProfile]:
    """A file with the device, and the device: the profile with every step so much longer."""
    device = replace(profile, step_time=profile.step_time.slowed(factor))
    path = folder / f"{profile.name}-{factor:g}.json"
    path.write_text(device.to_json())
    return str(path), device


def met_percent(run: Run, arm: Arm, runner: WarpedRunner) -> str:
    """The share of the run's requests that meet their objectives under this arm."""
    try:
        records = runner.run(arm, requests_of(run), 0).records
    except InputError as error:  # longer than the emulated model's context
        note(f"{run.key}: {error}")
        return "-"
    return f"{100 * sum(record.met for record in records) / len(records):.1f}"


def main() -> None:
    """Play every cell at every factor, then the table."""
    parser = plain_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", default=["h200-llama-11b", "shape-many-slots"])
    parser.add_argument("--workloads", nargs="+", default=["paper", "mixed", "agents"])
    parser.add_argument("--loads", nargs="+", type=float, default=[1.2])
    parser.add_argument("--factors", nargs="+", type=float, default=[1.0, 1.14])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model_dir = build_tiny_model(Workspace.current().cache / TINY_NAME)
    arms = [Arm(policy, "none" if policy == STOCK else "oracle") for policy in args.policies]
    cells = itertools.product(args.shapes, args.workloads, args.loads, args.factors)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder, PlayerProcess() as player:
        for shape, workload, load, factor in cells:
            run = Run(shape, workload, load, "oracle", args.seed, args.requests, STOCK)
            path, device = slowed(load_profile(shape), factor, Path(folder))
            runner = WarpedRunner(
                [player], path, device, model_dir, lengths_of(None),
                WarpSettings(seed=args.seed, planned_profile=shape),
            )  # fmt: skip
            met = [met_percent(run, arm, runner) for arm in arms]
            rows.append([shape, workload, f"{load:g}", f"{factor:g}", *met])
            note(json.dumps(rows[-1]))
    print_table(["shape", "workload", "load", "device / believed", *args.policies], rows)
    finish("wrong_clock", {"rows": rows})


if __name__ == "__main__":
    main()
