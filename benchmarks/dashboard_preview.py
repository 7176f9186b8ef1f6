"""The Grafana dashboard without Grafana: a real server under load, a real Prometheus beside it,
every panel's expressions asked of Prometheus and drawn into one picture.

Traffic is the built-in synthetic corpus on the model `tiny`, its lengths cut to a quarter; after
the first half of the run all answers are twice as long, so that drift has something to show.
Prometheus also evaluates alerts.yml; what it says of each rule is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from matplotlib.figure import Figure

from benchmarks.common import finish, note
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
from lengthwise.scheduler.vllm_adapter.settings import ServerSettings

ROOT = Path(__file__).parents[1]
OPERATIONS = ROOT / "docs" / "operations"
SCRAPE_S = 5
STRETCH = 2
SHORTER = 4
COLOURS = ("#2f6fb0", "#d9742b", "#6a9f58", "#8a5fa8", "#9aa3ab", "#c44e52", "#2b2f33", "#b8a038")
SLOS = {
    "chat": {"ttft_ms": 4000.0},
    "code": {"e2e_ms": 15000.0},
    "agent_step": {"e2e_ms": 4000.0},
    "reasoning": {"e2e_ms": 45000.0},
    "short_answer": {"e2e_ms": 6000.0},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prometheus(binary: str, target: str, folder: Path):
    """A Prometheus that scrapes one server; yields its URL."""
    port = free_port()
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [str(OPERATIONS / "alerts.yml")],
        "scrape_configs": [
            {"job_name": "lengthwise", "static_configs": [{"targets": [target]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        binary, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


async def traffic(url: str, table: Any, rate: float, seconds: float) -> int:
    """Poisson arrivals; one in fifty leaves early, sends no text, or asks for nonsense."""
    rng = random.Random(0)
    began, sent, tasks = time.monotonic(), 0, set()
    timeout = httpx.Timeout(300.0)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=timeout, limits=limits, base_url=url) as client:
        while (elapsed := time.monotonic() - began) < seconds:
            row = table.iloc[rng.randrange(len(table))]
            drifted = "d" if elapsed > seconds / 2 else ""
            body = {
                "model": "tiny", "prompt": row["prompt"], "max_tokens": 1500, "temperature": 0,
                "vllm_xargs": {"replay_id": f"{drifted}{row['id']}", "slo_class": row["slo_class"]},
            }  # fmt: skip
            patience_s = None
            match rng.randrange(50):
                case 0:
                    patience_s = 1.0
                case 1:
                    body["prompt"] = list(range(5, 25))
                case 2:
                    body["vllm_xargs"]["slo_ttft_ms"] = -1
            headers = {"x-tenant": rng.choice(["blue", "blue", "green"])}
            task = asyncio.create_task(one(client, body, headers, patience_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            await asyncio.sleep(rng.expovariate(rate))
        if tasks:
            await asyncio.wait(tasks, timeout=120)
    return sent


async def one(
    client: httpx.AsyncClient,
    body: dict[str, Any],
    headers: dict[str, str],
    patience_s: float | None,
) -> None:
    try:
        async with asyncio.timeout(patience_s):
            await client.post("/v1/completions", json=body, headers=headers)
    except (TimeoutError, httpx.HTTPError):
        return


def answers(panel: dict[str, Any], url: str, began_s: float, ended_s: float) -> list[Any]:
    """[(label, times, values)] of a panel; HTTPStatusError for an expression Prometheus refuses."""
    lines = []
    for target in panel["targets"]:
        whole = max(60, int(ended_s - began_s))
        expr = target["expr"].replace("$__rate_interval", f"{4 * SCRAPE_S}s")
        expr = expr.replace("$__range", f"{whole}s").replace("$instance", ".+")
        asked = {"query": expr, "start": began_s, "end": ended_s, "step": SCRAPE_S}
        answer = httpx.get(f"{url}/api/v1/query_range", params=asked, timeout=60)
        answer.raise_for_status()
        for series in answer.json()["data"]["result"]:
            labels = series["metric"]
            label = re.sub(
                r"\{\{(\w+)\}\}", lambda m, at=labels: at.get(m[1], ""), target["legendFormat"]
            )
            points = [(float(t), float(v)) for t, v in series["values"]]
            points = [(t, v) for t, v in points if math.isfinite(v)]
            if points:
                lines.append((label, [t - began_s for t, _ in points], [v for _, v in points]))
    return lines


def draw(dashboard: dict[str, Any], found: dict[int, list[Any]], caption: str) -> Figure:
    """All panels at their places in the grid."""
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
    figure = Figure(figsize=(24, 0.5 * height + 0.6), dpi=80)
    top = height + 1
    figure.text(0.012, 1 - 0.5 / top, caption, fontsize=13, va="center")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, bottom = place["x"] / 24, 1 - (place["y"] + place["h"] + 1) / top
        if panel["type"] == "row":
            figure.text(
                left + 0.012, bottom + 0.3 / top, panel["title"], fontsize=14, weight="bold"
            )
            continue
        axes = figure.add_axes(
            (left + 0.028, bottom + 2.0 / top, place["w"] / 24 - 0.04, (place["h"] - 3.1) / top)
        )
        axes.set_title(panel["title"], loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        _draw_panel(axes, panel, found[panel["id"]])
    return figure


def _draw_panel(axes: Any, panel: dict[str, Any], lines: list[Any]) -> None:
    if not lines:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    defaults = panel["fieldConfig"]["defaults"]
    percent = defaults["unit"] == "percentunit"
    if panel["type"] == "stat":
        names_only = panel["options"]["textMode"] == "name"
        said = [
            label if names_only else f"{values[-1]:.1%}" if percent else f"{values[-1]:g}"
            for label, _, values in lines
        ]
        size = 11 if names_only else 30
        axes.text(0.5, 0.5, "\n".join(said), ha="center", va="center", fontsize=size,
                  transform=axes.transAxes)  # fmt: skip
        axes.axis("off")
        return
    if panel["type"] == "state-timeline":
        for level, (_, times, values) in enumerate(lines):
            colours = [COLOURS[5] if v >= 1 else COLOURS[2] for v in values]
            axes.scatter(times, [level] * len(times), c=colours, marker="s", s=70, linewidths=0)
        axes.set_yticks(range(len(lines)), [label for label, _, _ in lines], fontsize=5)
        return
    for index, (label, times, values) in enumerate(lines):
        scale = 100 if percent else 1
        axes.plot(times, [scale * v for v in values], label=label, linewidth=1.2,
                  color=COLOURS[index % len(COLOURS)], marker="." if len(values) < 3 else None,
                  linestyle="-" if index < len(COLOURS) else "--")  # fmt: skip
    if "min" in defaults:
        axes.set_ylim(bottom=0)
    if percent:
        axes.set_ylim(top=103)
        axes.yaxis.set_major_formatter("{x:.0f} %")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(fontsize=7, ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12),
                columnspacing=0.8, handlelength=1.2)  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--prometheus", default="prometheus", help="the binary")
    arguments.add_argument("--minutes", type=float, default=6.0)
    arguments.add_argument("--rate", type=float, default=4.0, help="requests a second")
    arguments.add_argument("--output", type=Path, default=ROOT / "docs/figures/dashboard.png")
    options = arguments.parse_args()
    dashboard = json.loads((OPERATIONS / "dashboard.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = synthetic_table(1500, seed=7)
        table["output_tokens"] = (table["output_tokens"] // SHORTER).clip(lower=2)
        parts = split_table(table)
        note("training a predictor on synthetic rows")
        fit_predictor(parts["train"], parts["calibration"], n_estimators=60).save(folder / "p")
        lengths = dict(zip(table["id"], table["output_tokens"].tolist(), strict=True))
        replay = lengths | {f"d{key}": STRETCH * value for key, value in lengths.items()}
        (folder / "replay.json").write_text(json.dumps(replay))
        settings = ServerSettings(
            predictor_dir=str(folder / "p"),
            predictor_version="synthetic/1",
            slo_table=SLOS,
            request_log=str(folder / "log"),
            replay_table=str(folder / "replay.json"),
            max_wait_s=60.0,
        )
        port = free_port()
        vllm_args = ["--enforce-eager", "--max-num-seqs", "8"]
        note("starting vLLM and Prometheus")
        with (
            launch_server(
                "tiny", settings, port, vllm_args,
                log_path=folder / "server.log", cache_dir=folder,
            ) as server,
            prometheus(options.prometheus, f"127.0.0.1:{port}", folder) as url,
        ):  # fmt: skip
            server.wait_ready(300)
            began_s = time.time()
            sent = asyncio.run(
                traffic(server.url, parts["test"], options.rate, 60 * options.minutes)
            )
            time.sleep(2 * SCRAPE_S)
            ended_s = time.time()
            panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
            found = {panel["id"]: answers(panel, url, began_s, ended_s) for panel in panels}
            status = httpx.get(f"{server.url}/lengthwise/status", timeout=60).json()
            rules = httpx.get(f"{url}/api/v1/rules", timeout=60).json()["data"]["groups"]
            drift_lines = [
                line.split("] ", 1)[-1]
                for line in server.log_path.read_text(errors="replace").splitlines()
                if "lengthwise drift" in line
            ]
    empty = [panel["title"] for panel in panels if not found[panel["id"]]]
    caption = (
        f"lengthwise, {sent} synthetic requests on tiny, {options.rate:g} a second; "
        f"from {30 * options.minutes:.0f} s on answers are {STRETCH} times as long"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(dashboard, found, caption).savefig(options.output)
    for group in rules:
        for rule in group["rules"]:
            print(
                f"{rule['name']:32} {rule['state']:9} {rule['health']} {rule.get('lastError', '')}"
            )
    print("\n".join(drift_lines))
    print("panels without data:", ", ".join(empty) or "none")
    finish(
        "dashboard_preview",
        {"sent": sent, "empty": empty, "drift": status["drift"], "plan": status["plan"]},
    )


if __name__ == "__main__":
    main()
