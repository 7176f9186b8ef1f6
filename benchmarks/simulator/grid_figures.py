"""The scheduler's figures, from the grid's result file.

    python -m benchmarks.simulator.grid_figures --grid grid.jsonl

Writes attainment.png, lengths.png, queue.png and plan_time.png to docs/figures/. Queue growth is
played here (one cell, seconds); plan time is read from ``--plan-time``, what
`benchmarks.simulator.planner.plan_time` printed, or measured now.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from benchmarks.common import interval, plain_parser
from benchmarks.simulator.cells import LENGTHS, WORKLOADS, Cell, build
from benchmarks.simulator.grid_tables import BLIND, RULES, Cells, Line, by_cell, present
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.training.bench.runners.simulator_runner import simulated_policy

ROOT = Path(__file__).parents[2]
DARK, GREY, FAINT = "#222222", "#6b6b6b", "#b5b5b5"
# Okabe and Ito's colours, told apart by every kind of colour vision
STYLES: dict[str, dict[str, Any]] = {
    "sa": {"color": "#0072B2", "linewidth": 2.4, "marker": "o", "zorder": 5},
    "feasible-edf": {"color": "#D55E00", "linewidth": 1.6, "marker": "s", "zorder": 4},
    "feasible-sjf": {"color": "#009E73", "linewidth": 1.6, "marker": "^", "zorder": 4},
    "sa-paper": {"color": "#CC79A7", "linewidth": 1.6, "marker": "D", "zorder": 3},
    "fcfs": {"color": GREY, "linewidth": 1.6, "marker": "v", "zorder": 3},
    "edf": {"color": FAINT, "linestyle": "-"},
    "sjf": {"color": FAINT, "linestyle": (0, (5, 2))},
    "llf": {"color": FAINT, "linestyle": (0, (1, 1.2))},
    "hrrn": {"color": FAINT, "linestyle": (0, (5, 2, 1, 2))},
    "priority": {"color": FAINT, "linestyle": (0, (9, 3))},
    "bound": {"color": DARK, "linewidth": 1.3, "linestyle": (0, (4, 2)), "zorder": 6},
}
LENGTH_STYLES: dict[str, dict[str, Any]] = {
    "class": {"color": "#E69F00", "marker": "v"},
    "learned": {"color": "#0072B2", "marker": "o"},
    "oracle": {"color": "#009E73", "marker": "^"},
}
BASE = {"linewidth": 1.2, "markersize": 4.0}
LOOK = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "savefig.dpi": 150,
}
QUEUE_POLICIES = ("fcfs", "feasible-edf", "sa")


def save(figure: Figure, directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.png"
    figure.savefig(path)
    print(path)


def curve(
    cells: Cells, workload: str, lengths: str, policy: str, minus: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(loads, attainment, half its 95 % interval over seeds); arrivals averaged within a seed.

    ``minus`` names a policy whose attainment with class lengths is taken off, run by run.
    """
    found: dict[float, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (kind, name, arrivals, load), row in cells.items():
        if kind == lengths and name == workload:
            base = cells.get(("class", name, arrivals, load), {}).get(minus, {})
            for seed, line in row.get(policy, {}).items():
                if minus is None or seed in base:
                    off = base[seed]["attainment"] if minus else 0.0
                    found[load][seed].append(line["attainment"] - off)
    loads = sorted(found)
    figures = [interval([float(np.mean(v)) for v in found[x].values()]) for x in loads]
    middle, half = np.array(figures).reshape(-1, 2).T
    return np.array(loads), middle, np.nan_to_num(half)


def draw(axes: Any, found: tuple[np.ndarray, np.ndarray, np.ndarray], **style: Any) -> None:
    loads, middle, half = found
    style = BASE | style
    axes.plot(loads, middle, **style)
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    if style["color"] != FAINT:  # eleven bands would hide each other
        axes.fill_between(
            loads, middle - half, middle + half, color=style["color"], alpha=0.18, linewidth=0
        )


def legend(figure: Figure, axes: Any, first: Sequence[str] = ()) -> None:
    """Above the panels, in the order of ``first``."""
    handles, labels = axes.get_legend_handles_labels()
    places = [*first, *(label for label in labels if label not in first)]
    pairs = sorted(zip(labels, handles, strict=True), key=lambda pair: places.index(pair[0]))
    figure.legend(
        [handle for _, handle in pairs], [label for label, _ in pairs],
        loc="outside upper center", ncols=6, columnspacing=1.4,
    )  # fmt: skip


def attainment(cells: Cells) -> Figure:
    """Attainment against load: a row a workload, a column a kind of lengths."""
    workloads = [w for w in WORKLOADS if any(s[1] == w for s in cells)]
    kinds = [k for k in reversed(LENGTHS) if any(s[0] == k for s in cells)]
    size = (3.1 * len(kinds) + 0.4, 2.35 * len(workloads) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(workloads), len(kinds), squeeze=False, sharex=True, sharey=True)
    for i, workload in enumerate(workloads):
        for j, kind in enumerate(kinds):
            axes = grid[i][j]
            for policy in present(cells):
                draw(axes, curve(cells, workload, kind, policy), **STYLES[policy], label=policy)
            axes.set_title(f"{workload}, {kind} lengths")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_ylim(0, 1.03)
    figure.supxlabel("load, multiples of capacity", fontsize=10)
    figure.supylabel("requests that met their SLO", fontsize=10)
    legend(figure, grid[0][0], list(STYLES))
    return figure


def best_rule(cells: Cells, lengths: str) -> str:
    """The best single rule by mean over all cells."""
    means = {
        rule: np.mean(
            [line["attainment"] for s, row in cells.items() if s[0] == lengths
             for line in row[rule].values()]
        )
        for rule in RULES
        if all(rule in row for s, row in cells.items() if s[0] == lengths)
    }  # fmt: skip
    return max(means, key=lambda rule: float(means[rule]))


def lengths(cells: Cells) -> Figure:
    """Where the gain comes from: points over the best rule with class lengths."""
    rule = best_rule(cells, "class")
    workloads = [w for w in WORKLOADS if any(s[1] == w for s in cells)]
    kinds = [k for k in reversed(LENGTHS) if any(s[0] == k for s in cells)]
    figure = Figure(figsize=(3.2 * len(workloads) + 0.3, 3.9), layout="constrained")
    grid = figure.subplots(1, len(workloads), squeeze=False, sharey=True)[0]
    for axes, workload in zip(grid, workloads, strict=True):
        for kind in kinds:
            style = LENGTH_STYLES[kind]
            loads, gain, half = curve(cells, workload, kind, "sa", minus=rule)
            draw(axes, (loads, 100 * gain, 100 * half), **style, label=f"sa, {kind}")
            if rule not in BLIND and kind != "class":
                other = curve(cells, workload, kind, rule, minus=rule)
                axes.plot(
                    other[0], 100 * other[1], **BASE | style,
                    linestyle=(0, (4, 2)), markerfacecolor="white", label=f"{rule}, {kind}",
                )  # fmt: skip
        loads, over, _ = curve(cells, workload, "class", "bound", minus=rule)
        axes.plot(loads, 100 * over, **BASE | STYLES["bound"], label="bound")
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set_title(workload)
    grid[0].set_ylabel(f"points over {rule}, class lengths")
    figure.supxlabel("load, multiples of capacity", fontsize=10)
    legend(figure, grid[0])
    return figure


def queue(cell: Cell) -> Figure:
    """Requests waiting, and the share met by time of arrival, in one cell."""
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    workload, profile = build(cell)
    arrival = workload.arrival_s
    edges = np.linspace(0.0, arrival[-1], 25)
    place = np.clip(np.digitize(arrival, edges) - 1, 0, len(edges) - 2)
    end_s = 0.0
    for policy in QUEUE_POLICIES:
        result = simulate(workload, simulated_policy(policy, cell.seed), profile)
        at = np.linspace(0.0, result.end_s, 400)
        admitted = np.sort(result.admitted_s)
        waiting = np.searchsorted(arrival, at, "right") - np.searchsorted(admitted, at, "right")
        style = BASE | STYLES[policy]
        upper.plot(at, waiting, **style | {"marker": None}, label=policy)
        met = result.met(workload).astype(float)
        share = [met[place == b].mean() if (place == b).any() else np.nan for b in range(24)]
        lower.plot((edges[:-1] + edges[1:]) / 2, share, **style, label=policy)
        end_s = max(end_s, result.end_s)
    for axes in (upper, lower):
        axes.axvline(arrival[-1], color=GREY, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_xlim(0, end_s)
    upper.annotate(
        "last arrival", (arrival[-1], 0.97), xycoords=("data", "axes fraction"),
        xytext=(5, 0), textcoords="offset points", va="top", color=GREY,
    )  # fmt: skip
    upper.set_ylim(bottom=0)
    upper.set_ylabel("requests waiting")
    upper.set_title(
        f"{cell.workload}, load {cell.load:g}, {cell.arrivals} arrivals, {cell.lengths} lengths"
    )
    upper.legend(loc="upper left")
    lower.set_ylim(-0.03, 1.05)
    lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    lower.set_ylabel("met, by time of arrival")
    lower.set_xlabel("seconds since the first request")
    return figure


def read_plan_time(text: str) -> dict[tuple[str, int], list[tuple[int, float, float]]]:
    """(policy, running) to (waiting, p50 ms, p99 ms), from plan_time's last line."""
    found: dict[tuple[str, int], list[tuple[int, float, float]]] = defaultdict(list)
    for row in json.loads(text.splitlines()[-1])["result"]:
        point = (row["waiting"], row["p50_ms"], row["p99_ms"])
        found[row["policy"], row["running"]].append(point)
    return found


def plan_time(text: str) -> Figure:
    """Plan time against queue length, median and 99th percentile, and the targets."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for (policy, running), points in read_plan_time(text).items():
        waiting, p50, p99 = np.array(sorted(points)).T
        style = BASE | STYLES[policy]
        few = {} if running >= 256 else {"markerfacecolor": "white"}
        axes.plot(waiting, p50, **style | few, label=f"{policy}, {running} running")
        axes.fill_between(waiting, p50, p99, color=style["color"], alpha=0.15, linewidth=0)
    for waiting, limit in ((256, 1.0), (4096, 5.0)):
        axes.plot(waiting, limit, marker="_", markersize=22, color=DARK, markeredgewidth=2)
        axes.annotate(
            f"target p99 {limit:g} ms", (waiting, limit), xytext=(0, 6),
            textcoords="offset points", ha="center", fontsize=9, color=DARK,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    plain = FuncFormatter(lambda value, _: f"{value:,.6g}")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.set_xlabel("requests waiting")
    axes.set_ylabel("plan time, ms")
    axes.set_title("Plan time: median, shaded up to the 99th percentile")
    axes.legend(loc="upper left", fontsize=9)
    return figure


def measured_plan_time(repeats: int) -> str:
    """What plan_time prints now."""
    study = "benchmarks.simulator.planner.plan_time"
    command = [sys.executable, "-m", study, "--repeats", str(repeats)]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--grid", type=Path, required=True, help="grid.py's --out")
    parser.add_argument("--plan-time", type=Path, help="what plan_time printed")
    parser.add_argument("--repeats", type=int, default=300, help="where it is measured now")
    parser.add_argument("--directory", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--workload", default="mixed", help="of the queue's cell")
    parser.add_argument("--load", type=float, default=1.4)
    parser.add_argument("--arrivals", default="azure")
    parser.add_argument("--requests", type=int, default=1500)
    args = parser.parse_args()

    lines: list[Line] = [json.loads(line) for line in args.grid.read_text().splitlines()]
    cells = by_cell(lines)
    text = args.plan_time.read_text() if args.plan_time else measured_plan_time(args.repeats)
    cell = Cell(args.workload, args.load, args.arrivals, "learned", 0, args.requests)
    with mpl.rc_context(LOOK):
        save(attainment(cells), args.directory, "attainment")
        save(lengths(cells), args.directory, "lengths")
        save(queue(cell), args.directory, "queue")
        save(plan_time(text), args.directory, "plan_time")


if __name__ == "__main__":
    main()
