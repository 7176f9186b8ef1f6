"""The figures of the report, each a function from records to an inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import lines, ticker
from matplotlib.figure import Figure

from lengthwise.training.bench.engines.client import QueueSample
from lengthwise.training.bench.results.records import RequestRecord
from lengthwise.training.bench.results.result import BenchResult

Records = Mapping[str, Sequence[RequestRecord]]
QueueLog = Mapping[str, Sequence[tuple[int, QueueSample]]]

STOCK_COLOUR = "#8a8f98"
ARM_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#db2777", "#0891b2", "#65a30d")
SLO_LINE: dict[str, Any] = {"color": "#dc2626", "linewidth": 1.2, "linestyle": (0, (4, 2))}
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": "#c5c9d0",
    "axes.labelcolor": "#444b57",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eceef2",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#6b7280",
    "ytick.color": "#6b7280",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
CDF_POINTS = 240
MOST_SLO_LINES = 3


def arm_colours(labels: Sequence[str]) -> dict[str, str]:
    """Grey for stock (in a simulation: for the first arm), one strong colour for each other."""
    colours = iter(ARM_COLOURS * (1 + len(labels) // len(ARM_COLOURS)))
    return {label: STOCK_COLOUR if label == labels[0] else next(colours) for label in labels}


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element whose ids do not clash with another figure's."""
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # the names matplotlib gives its groups repeat in every figure; nothing refers to them
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r' height="[^"]*pt"', "", svg, count=1)
    return re.sub(r' width="[^"]*pt"', ' width="100%"', svg, count=1)


def attainment_figure(result: BenchResult) -> str:
    """Share of requests that met their SLO, by class and arm, with 95 % intervals."""
    classes = sorted({c for arm in result.arms for c in arm.per_class})
    groups = ["all", *classes] if len(classes) > 1 else ["all"]
    colours = arm_colours([arm.label for arm in result.arms])
    bar = 0.8 / len(result.arms)
    with mpl.rc_context(STYLE):
        height = 0.8 + 0.19 * len(groups) * (len(result.arms) + 0.9)
        figure = Figure(figsize=(9.6, height), layout="constrained")
        axes = figure.subplots()
        for k, arm in enumerate(result.arms):
            for g, group in enumerate(groups):
                outcome = arm if group == "all" else arm.per_class.get(group)
                if outcome is None or outcome.attainment is None:
                    continue
                y = g + (k - (len(result.arms) - 1) / 2) * bar
                low, high = outcome.attainment_ci95 or (outcome.attainment,) * 2
                axes.barh(
                    y, outcome.attainment, height=bar * 0.86, color=colours[arm.label],
                    label=arm.label if g == 0 else None,
                )  # fmt: skip
                axes.plot([low, high], [y, y], color="#1f2937", linewidth=1.1)
                axes.text(
                    max(high, outcome.attainment) + 0.012, y, f"{outcome.attainment:.1%}",
                    va="center", fontsize=8.5, color="#374151",
                )  # fmt: skip
        axes.set_yticks(range(len(groups)), groups)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.09)
        axes.xaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("requests that met their whole SLO")
        figure.legend(loc="outside upper left", ncols=min(5, len(result.arms)))
    return to_svg(figure, "attainment")


def _cdf(values: Sequence[float], total: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of an empirical CDF; lost requests keep it below 1."""
    x = np.sort(np.asarray(values, dtype=float))
    y = np.arange(1, len(x) + 1) / max(total, 1)
    if len(x) > CDF_POINTS:
        keep = np.unique(np.linspace(0, len(x) - 1, CDF_POINTS).astype(int))
        x, y = x[keep], y[keep]
    return x, y


def latency_figure(records: Records) -> str:
    """CDFs of TTFT, TPOT (where some class has an objective on it) and e2e, a row per class."""
    everything = [r for rows in records.values() for r in rows]
    classes = sorted({r.slo_class for r in everything})
    names = ["ttft", "e2e"]
    if any(r.slo.tpot_s is not None for r in everything):
        names.insert(1, "tpot")
    titles = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end to end"}
    colours = arm_colours(list(records))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.3 * len(classes) + 0.3), layout="constrained")
        grid = figure.subplots(len(classes), len(names), squeeze=False)
        for row, slo_class in enumerate(classes):
            for column, name in enumerate(names):
                axes = grid[row][column]
                scale = 1e3 if name == "tpot" else 1.0
                right = 0.0
                for label, rows in records.items():
                    own = [r for r in rows if r.slo_class == slo_class]
                    done = [getattr(r, f"{name}_s") * scale for r in own if r.ok]
                    axes.plot(*_cdf(done, len(own)), color=colours[label], label=label)
                    right = max(right, np.quantile(done, 0.995) if done else 0.0)
                limits = {
                    getattr(r.slo, f"{name}_s") for r in everything if r.slo_class == slo_class
                } - {None}
                # many different objectives would hide the curves
                for limit_s in limits if len(limits) <= MOST_SLO_LINES else ():
                    axes.axvline(limit_s * scale, **SLO_LINE)
                    right = max(right, 1.12 * limit_s * scale)
                axes.set_ylim(0, 1.02)
                axes.set_xlim(0, 1.03 * right or 1.0)
                unit = "ms" if name == "tpot" else "s"
                axes.set_title(f"{slo_class}: {titles[name]}, {unit}", loc="left")
                axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
        handles, labels = grid[0][0].get_legend_handles_labels()
        slo = lines.Line2D([], [], **SLO_LINE)
        figure.legend(
            [*handles, slo], [*labels, "objective"], loc="outside upper left",
            ncols=min(6, len(labels) + 1),
        )  # fmt: skip
    return to_svg(figure, "latency")


def queue_figure(queue: QueueLog) -> str:
    """Requests waiting over time, a line per repeat, a colour per arm."""
    colours = arm_colours(list(queue))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.7), layout="constrained")
        axes = figure.subplots()
        for label, samples in queue.items():
            ordered = sorted(samples, key=lambda s: (s[0], s[1].at_s))
            for k, (_, group) in enumerate(groupby(ordered, key=lambda s: s[0])):
                points = [sample for _, sample in group]
                axes.plot(
                    [p.at_s for p in points], [p.waiting for p in points],
                    color=colours[label], alpha=0.85, linewidth=1.4,
                    label=label if k == 0 else None,
                )  # fmt: skip
        axes.set_xlabel("time since the first request of the run, s")
        axes.set_ylabel("requests waiting")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.legend(loc="upper left")
    return to_svg(figure, "queue")


def attainment_over_time_figure(records: Records, bins: int = 12) -> str:
    """Attainment by time of arrival: when the queue starts to hurt, and whom."""
    everything = [r for rows in records.values() for r in rows]
    edges = np.linspace(0, max(r.arrival_s for r in everything) + 1e-9, bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    colours = arm_colours(list(records))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.5), layout="constrained")
        axes = figure.subplots()
        for label, rows in records.items():
            slot = np.clip(np.digitize([r.arrival_s for r in rows], edges) - 1, 0, bins - 1)
            met = np.array([r.met for r in rows], dtype=float)
            share = [met[slot == b].mean() if (slot == b).any() else np.nan for b in range(bins)]
            axes.plot(centres, share, color=colours[label], label=label, marker="o", markersize=3)
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("arrival time within the run, s")
        axes.set_ylabel("met their SLO")
        axes.legend(loc="lower left")
    return to_svg(figure, "over-time")


def prediction_figure(records: Sequence[RequestRecord]) -> str | None:
    """Predicted against true length on log axes; None where nothing was predicted."""
    known = [r for r in records if r.predicted_tokens is not None and r.repeat == 0]
    if not known:
        return None
    classes = sorted({r.slo_class for r in known})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for colour, slo_class in zip(ARM_COLOURS, classes, strict=False):
            own = [r for r in known if r.slo_class == slo_class]
            axes.scatter(
                [r.target_tokens for r in own], [r.predicted_tokens for r in own],
                s=9, alpha=0.55, linewidths=0, color=colour, label=slo_class,
            )  # fmt: skip
        values = [v for r in known for v in (r.target_tokens, r.predicted_tokens) if v]
        low, high = max(1.0, min(values) * 0.8), max(values) * 1.25
        axes.plot([low, high], [low, high], color="#9ca3af", linewidth=1)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:,.0f}"))
            axis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlabel("true answer length, tokens")
        axes.set_ylabel("predicted (median), tokens")
        axes.legend(loc="upper left", handletextpad=0.2)
    return to_svg(figure, "prediction")
