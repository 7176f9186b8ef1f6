"""One start of both servers: the engine calibrated, then stock against ours at its own scale.

    python -m benchmarks.engine.one_start llama-11b --workloads mixed paper --load 1.4 --out DIR \\
        -- --kv-cache-memory-bytes 10G --max-num-seqs 128 --gpu-memory-utilization 0.4

For an engine that is costly to start or lent for minutes. The model is a name or a folder that
vLLM serves, or one of the shapes here: a Llama of that size with random weights, whose steps take
what trained ones would. Answers are replayed lengths. The profile is written first, each
workload's result as it ends; what would not end within ``--within`` seconds is left out, told.
A workload that is named again is drawn anew, with the next seed, into a folder of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import finish, note, plain_parser, print_table
from lengthwise.scheduler.vllm_adapter.server.tiny import write_dummy_llama
from lengthwise.training.bench.comparison.arms import parse_arms, post_configure
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import capacity_rps, open_workload
from lengthwise.training.bench.engines.calibrate import calibrate_server, write_profile
from lengthwise.training.bench.engines.servers import start_servers
from lengthwise.training.bench.results.report import write_run
from lengthwise.training.bench.runners.engine_runner import EngineRunner
from lengthwise.training.bench.session import load_predictor
from lengthwise.training.registry.models import resolve_predictor
from lengthwise.training.workspace import Workspace

VOCAB_RANKS = 32_000
# Of Llama's architecture: what is told from the built-in model's configuration.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "llama-11b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                  "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128},
}  # fmt: skip
DUMMY = ("--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", "8192")


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("model", help=f"{', '.join(SHAPES)}, or what vLLM serves")
    parser.add_argument("--workloads", nargs="+", default=["mixed", "paper"])
    parser.add_argument("--load", type=float, default=1.4)
    parser.add_argument(
        "--arms",
        nargs="+",
        default=["sa:learned,feasible-sjf:learned,feasible-edf:learned"],
        help="of every workload, or a list for each",
    )
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of arrivals")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--predictor", required=True, help="model URI or directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log-steps", action="store_true", help="of our arms, to OUT/servers")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds from the start")
    ours, options = sys.argv[1:], []
    if "--" in ours:
        at = ours.index("--")
        ours, options = ours[:at], ours[at + 1 :]
    given = parser.parse_args(ours)
    if len(given.arms) not in (1, len(given.workloads)):
        parser.error(f"--arms: {len(given.arms)} lists for {len(given.workloads)} workloads")
    arms = given.arms * (len(given.workloads) if len(given.arms) == 1 else 1)
    began_s = time.monotonic()
    workspace = Workspace.current()
    resolved = resolve_predictor(given.predictor, workspace=workspace)
    predictor = load_predictor(resolved)
    vllm_args = tuple(options)
    model = given.model
    if model in SHAPES:
        model = str(shaped_model(model, given.out / "model"))
        vllm_args = (*DUMMY, *vllm_args)
    rows = []
    with start_servers(
        model,
        directory=given.out / "servers",
        cache_dir=workspace.cache,
        predictor=resolved,
        vllm_args=vllm_args,
        seed=given.seed,
    ) as servers:
        note(f"both servers are up after {time.monotonic() - began_s:.0f} s")
        source = open_workload(given.workloads[0])
        done = calibrate_server(servers, source, name=given.model, short=True, on_stage=note)
        done = replace(done, profile=replace(done.profile, scale="gpu"))
        write_profile(done, given.out / "profile.json")
        note(f"calibrated after {time.monotonic() - began_s:.0f} s: {json.dumps(done.report)}")
        if given.log_steps:
            asyncio.run(post_configure(servers.ours.url, {"log_steps": True}))
        runner = EngineRunner(servers, predictor=predictor)
        longest_s = 0.0
        draws: Counter[str] = Counter()
        for workload, compared in zip(given.workloads, arms, strict=True):
            run_began_s = time.monotonic()
            if run_began_s - began_s + longest_s > given.within:
                note(f"{workload} left out: not within {given.within:.0f} s")
                continue
            source = open_workload(workload, profile=done.profile)
            draw = draws[workload]
            draws[workload] += 1
            outcome = compare(
                source,
                BenchSettings(
                    arms=parse_arms(compared),
                    workload=workload,
                    load=given.load,
                    duration_s=given.duration,
                    repeats=given.repeats,
                    seed=given.seed + draw,
                ),
                runner,
                capacity_rps=capacity_rps(source, done.profile),
                predictor_label=resolved.label,
                run_info={"profile": done.profile.name},
                say=note,
            )
            folder = given.out / (f"{workload}-{draw}" if draw else workload)
            write_run(folder, outcome.result, outcome.records, outcome.queue)
            longest_s = max(longest_s, time.monotonic() - run_began_s)
            rows += [
                [workload, arm.label, f"{arm.attainment:.3f}", f"{arm.mean_e2e_s:.2f}"]
                for arm in outcome.result.arms
            ]
    print_table(["workload", "arm", "met", "mean e2e s"], rows)
    finish("one_start", {"rows": rows, "profile": str(given.out / "profile.json")})


def shaped_model(name: str, directory: Path) -> Path:
    """A folder that vLLM loads with dummy weights."""
    directory.mkdir(parents=True, exist_ok=True)
    write_dummy_llama(directory, SHAPES[name] | {"torch_dtype": "bfloat16"}, VOCAB_RANKS)
    return directory


if __name__ == "__main__":
    main()
