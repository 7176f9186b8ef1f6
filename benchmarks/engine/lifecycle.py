"""The loop once round on the real engine: drift, alarm, training from the log, promotion, reload.

    python -m benchmarks.engine.lifecycle

A predictor trained on a pack is served; then the served model changes its habits: answers to
longer prompts become twice as long, to shorter ones half as long, which no factor per class can
mend. Every step is a command of `lengthwise`, as an operator (or cron) would give it; what is
measured before and after is the same requests at the same times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import requests as http

from benchmarks.common import finish, note, print_table
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.vllm_adapter.server.command import LOGITS_PROCESSOR
from lengthwise.scheduler.vllm_adapter.vllm_config import REPLAY_VARIABLE
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, open_workload
from lengthwise.training.bench.engines.client import Call, completion_body, replay, wait_idle
from lengthwise.training.bench.engines.servers import ReplayIds, free_port
from lengthwise.training.bench.results.records import RequestRecord, paired_difference
from lengthwise.training.bench.runners.engine_runner import to_records

FACTOR = 2.0
LONGEST = 1500
POLL_S = 2.0
PATIENCE_S = 240.0
LENGTHWISE = Path(sys.executable).with_name("lengthwise")


def changed(drawn: Sequence[WorkloadRequest]) -> list[WorkloadRequest]:
    """The requests as the changed model answers them."""
    middle = float(np.median([r.prompt_tokens for r in drawn]))
    factors = [FACTOR if r.prompt_tokens > middle else 1.0 / FACTOR for r in drawn]
    return [
        replace(r, output_tokens=int(np.clip(round(r.output_tokens * f), 1, LONGEST)))
        for r, f in zip(drawn, factors, strict=True)
    ]


class Site:
    """A workspace, the server in it, and what is sent to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "log"
        self.table = ReplayIds.random(LONGEST)
        self.replay_file = self.table.write(root / "replay.json")
        self.url = f"http://127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "LENGTHWISE_HOME": str(root),
            REPLAY_VARIABLE: str(self.replay_file),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"),
        }
        self._runs = 0

    def run(self, *arguments: str, may_refuse: bool = False) -> dict[str, Any]:
        """A `lengthwise` command; its JSON document."""
        note("$ lengthwise " + " ".join(arguments))
        done = subprocess.run(
            [str(LENGTHWISE), *arguments, "--json"],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode and not may_refuse:
            raise RuntimeError(f"lengthwise {arguments[0]} failed: {done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    @contextmanager
    def serving(self) -> Iterator[None]:
        """`lengthwise serve`, following the registry."""
        command = [
            str(LENGTHWISE), "serve", "tiny", "--port", self.url.rsplit(":", 1)[1],
            "--request-log", str(self.log), "--log-prompts", "--poll-s", str(POLL_S),
            "--logits-processors", LOGITS_PROCESSOR, "--stream-interval", "16",
        ]  # fmt: skip
        with (self.root / "server.log").open("wb") as output:
            process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                self.wait_for(lambda: http.get(f"{self.url}/health", timeout=5).ok)
                yield
            finally:
                process.terminate()
                process.wait(60)

    def status(self) -> dict[str, Any]:
        """`GET /lengthwise/status`."""
        return http.get(f"{self.url}/lengthwise/status", timeout=30).json()

    def wait_for(self, holds: Any) -> float:
        """Seconds until it holds; TimeoutError after PATIENCE_S."""
        began = time.perf_counter()
        last: Exception | None = None
        while time.perf_counter() - began < PATIENCE_S:
            try:
                if holds():
                    return time.perf_counter() - began
            except http.RequestException as error:  # it is not up yet, or not any more
                last = error
            time.sleep(0.25)
        raise TimeoutError(
            f"nothing after {PATIENCE_S:g} s, last {last!r}; see {self.root / 'server.log'}"
        ) from last

    def wait_for_version(self, label: str) -> float:
        """Seconds until the server predicts with this version."""
        return self.wait_for(lambda: self.status()["predictor_version"] == label)

    async def drive(self, sent: Sequence[WorkloadRequest]) -> list[RequestRecord]:
        """Send all at their times and follow every answer."""
        self._runs += 1
        await wait_idle(self.url)
        calls = [
            Call(
                r.arrival_s,
                completion_body(
                    r, model="tiny", replay_id=self.table.id_of(r.output_tokens, i),
                    max_tokens=LONGEST, cache_salt=str(self._runs),
                ),
            )
            for i, r in enumerate(sent)
        ]  # fmt: skip
        return to_records(sent, await replay(self.url, calls), 0, None)


def figures(name: str, records: Sequence[RequestRecord]) -> list[object]:
    lost = sum(not r.ok for r in records)
    met = float(np.mean([r.met for r in records]))
    e2e = float(np.mean([r.e2e_s for r in records if r.e2e_s is not None]))
    return [name, len(records), lost, f"{met:.1%}", f"{e2e:.1f} s"]


def walk(site: Site, source: WorkloadSource, rate_rps: float, n: int) -> dict[str, Any]:
    """Round once; what was seen."""
    rows, seen = [], {}
    first = site.run("train", "--pack", source.source_label, "--register")
    version_1 = first["model_uri"]
    with site.serving():
        note(f"serving {site.status()['predictor_version']}")
        rows.append(
            figures("as trained, version 1", asyncio.run(site.drive(source.draw(n, rate_rps, 1))))
        )
        seen["alarms_before"] = site.status()["drift"]["alarms"]
        learned_from = changed(source.draw(2 * n, rate_rps, 2))
        rows.append(figures("changed, version 1, logged", asyncio.run(site.drive(learned_from))))
        alarms = site.status()["drift"]["alarms"]
        seen["alarms"] = alarms
        note(f"drift alarms: {json.dumps(alarms)}")
        second = site.run("train", "--from-log", str(site.log), "--alias", "challenger")
        version_2 = second["model_uri"]

        judged = changed(source.draw(n, rate_rps, 3))
        before = asyncio.run(site.drive(judged))
        rows.append(figures("changed, version 1", before))
        decision = site.run(
            "promote", "--from-log", str(site.log), "--requests", str(n), may_refuse=True
        )
        seen["decision"] = decision
        note(f"promotion: {json.dumps(decision)}")

        async def reload_under_load() -> tuple[list[RequestRecord], float]:
            sending = asyncio.create_task(site.drive(changed(source.draw(n // 2, rate_rps, 4))))
            taken_s = await asyncio.to_thread(site.wait_for_version, version_2)
            return await sending, taken_s

        under_load, seen["reload_s"] = asyncio.run(reload_under_load())
        rows.append(figures("changed, while reloading", under_load))
        after = asyncio.run(site.drive(judged))
        rows.append(figures("changed, version 2", after))
        paired = paired_difference(after, before)
        seen |= paired
        left = seen["alarms_after"] = site.status()["drift"]["alarms"]
        site.run("promote", "--rollback")
        seen["rollback_s"] = site.wait_for_version(version_1)
    print_table(["traffic and predictor", "requests", "lost", "SLO met", "mean e2e"], rows)
    low, high = (100 * end for end in paired["difference_ci95"])
    print(
        "\nPaired difference, version 2 - version 1 on the same requests: "
        f"{100 * paired['attainment_difference']:+.1f} points [{low:+.1f}, {high:+.1f}]. "
        f"Version 2 served {seen['reload_s']:.1f} s after the promotion, version 1 again "
        f"{seen['rollback_s']:.1f} s after the rollback; alarms left then: {len(left)}."
    )
    return seen | {"rows": rows, "versions": [version_1, version_2]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--workload", default="mixed")
    arguments.add_argument("--rate", type=float, default=8.0, help="requests a second")
    arguments.add_argument("--requests", type=int, default=320, help="of one measured run")
    options = arguments.parse_args()
    source = open_workload(options.workload)
    with tempfile.TemporaryDirectory(prefix="lengthwise-loop-") as folder:
        finish("lifecycle", walk(Site(Path(folder)), source, options.rate, options.requests))


if __name__ == "__main__":
    main()
