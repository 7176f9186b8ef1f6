"""Soak: hours' worth of short requests against the real engine, watched for leaks and losses.

Mixed classes with SLOs on the built-in model, replayed lengths, real prompts where
``LENGTHWISE_DATA`` is set. Arrivals lie below the measured capacity with bursts above it; one
client in twenty hangs up, one in five asks another generating route; every minute the predictor
and the policy are switched, every five the predictor is slow for a while and the engine is paused.
Answers are scaled to be short, so that many requests fit into the time. Exit status 1 if a
criterion fails.

    python -m benchmarks.engine.soak --minutes 30 --requests 50000
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.common import note
from benchmarks.engine.accounts import Faults, drive, logged
from benchmarks.engine.soak.soak_report import MAX_WAIT_S, report
from benchmarks.engine.soak.soak_run import POLICIES, Soak, live_state
from benchmarks.engine.soak.soak_samples import plot
from benchmarks.engine.soak.soak_traffic import Traffic
from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.serving.live import write_live
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
from lengthwise.training.bench.engines.cores import bound_cores, off_cores
from lengthwise.training.bench.engines.servers import free_port, leaving_on_sigterm

START_TIMEOUT_S = 600.0
SLOTS = 32
# A cache of 65,536 tokens: one of the usual size would be touched page by page for many minutes,
# which looks like a leak.
SERVER_ARGS = (
    "--max-num-seqs", "32", "--stream-interval", "16", "--max-model-len", "2048",
    "--block-size", "32", "--num-gpu-blocks-override", "2048", "--enable-scale-out",
)  # fmt: skip


def predictors(directory: Path) -> list[Path]:
    """Two small predictors of the same levels, to switch between."""
    from lengthwise.data.sources.synthetic.corpus import synthetic_table
    from lengthwise.data.splits import split_table
    from lengthwise.predictor.fitting.fit import fit_predictor

    made = []
    for seed in (1, 2):
        parts = split_table(synthetic_table(1500, seed=seed))
        made.append(directory / f"soak-{seed}")
        fit_predictor(parts["train"], parts["calibration"], n_estimators=30).save(made[-1])
    return made


def capacity(url: str, traffic: Traffic) -> float:
    """Requests a second with the slots full, closed loop; the first round warms up."""
    rate = 0.0
    for turn, count in enumerate((4 * SLOTS, 12 * SLOTS)):
        asked = [traffic.asked(i, f"capacity{turn}") for i in range(count)]
        account = asyncio.run(drive(url, asked, concurrency=2 * SLOTS))
        if account.lost:
            raise SystemExit(f"the server loses requests before the soak: {account.errors}")
        rate = account.answered / account.elapsed_s
    return rate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--mean-tokens", type=float, default=24.0, help="of the scaled answers")
    parser.add_argument("--eager", action="store_true", help="compile nothing: a quick try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/soak_memory.png"))
    options = parser.parse_args()
    traffic = Traffic(options.mean_tokens, options.seed)
    with leaving_on_sigterm(), tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        root = Path(scratch)
        known = predictors(root)
        live_file = root / "live.json"
        write_live(live_file, live_state(known[0], POLICIES[0]))
        table = {c.slo.slo_class: {} for c in traffic.classes}
        settings = ServerSettings(
            predictor_dir=str(known[0]),
            predictor_version=known[0].name,
            slo_table=table,
            request_log=str(root / "log"),
            max_wait_s=MAX_WAIT_S,
            allow_configure=True,
            live_file=str(live_file),
        )
        faults = Faults(root / "faults.json")
        with launch_server(
            "tiny",
            settings,
            free_port(),
            [*SERVER_ARGS, *(["--enforce-eager"] if options.eager else [])],
            log_path=root / "server.log",
            replay_table=traffic.replay_table(root / "replay.json"),
            cache_dir=Path.cwd() / ".lengthwise",
            env=faults.environment() | {"VLLM_SERVER_DEV_MODE": "1"},  # which has /pause
        ) as server:
            server.wait_ready(START_TIMEOUT_S)
            rate = capacity(server.url, traffic)
            note(f"capacity {rate:.1f} requests/s")
            run = Soak(server, traffic, known, live_file, rate, faults)
            with off_cores(bound_cores([server.process.pid])):
                asyncio.run(run.run(options.minutes, options.requests, options.seed))
            time.sleep(3.0)  # the log's last batch
            rows = Counter({k: n for k, n in logged(root / "log").items() if k.startswith("soak-")})
            tenants = Counter(read_request_log(root / "log")["tenant"].dropna())
            said = server.log_path.read_text(errors="replace")
    figure = plot(run.samples, options.figure)
    return report(run, rows, tenants, said.count("Traceback"), figure)


if __name__ == "__main__":
    sys.exit(main())
