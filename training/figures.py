"""Figures of a training run, as matplotlib Figures; nothing is shown or written here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

Floats = NDArray[np.floating]

BLUE, ORANGE, GREY, DARK = "#2f6fb0", "#d9742b", "#9aa3ab", "#2b2f33"
DPI = 130
ARM_COLOURS = (BLUE, ORANGE, GREY, "#6a9f58", "#8a5fa8")


def _figure(title: str, note: str, width: float = 6.4, height: float = 4.8) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=DARK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(note, loc="right", fontsize=8, color=GREY)
    # fixed margins: measuring them costs as much as drawing
    figure.subplots_adjust(left=0.12, right=0.96, top=0.91, bottom=0.12)
    return figure, axes


def predicted_against_true(true: Floats, median: Floats, *, note: str = "") -> Figure:
    """Density of predicted median against true length, both (n,) tokens, log-log."""
    figure, axes = _figure("Predicted against true length", note)
    low = max(1.0, float(min(true.min(), median.min())) * 0.8)
    high = float(max(true.max(), median.max())) * 1.25
    density = axes.hexbin(
        true, median, xscale="log", yscale="log", bins="log", gridsize=46, mincnt=1,
        cmap="YlGnBu", linewidths=0, extent=(np.log10(low), np.log10(high)) * 2,
    )  # fmt: skip
    line = np.array([low, high])
    axes.plot(line, line, color=DARK, linewidth=1)
    axes.fill_between(
        line, line / 1.25, line * 1.25, color=ORANGE, alpha=0.15, linewidth=0, label="within 25 %"
    )
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("true output length, tokens")
    axes.set_ylabel("predicted median, tokens")
    share = float(np.mean(np.abs(median - true) <= 0.25 * true))
    axes.annotate(
        f"n = {len(true):,}   MAE {np.mean(np.abs(median - true)):.1f}   within 25 %: {share:.0%}",
        (0.02, 0.97), xycoords="axes fraction", va="top", fontsize=9, color=DARK,
    )  # fmt: skip
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.colorbar(density, ax=axes, label="answers per cell", shrink=0.8)
    return figure


def calibration(
    true: Floats, curves: Mapping[str, tuple[Sequence[float], Floats]], *, note: str = ""
) -> Figure:
    """Share of answers at or below each quantile against its level.

    ``curves`` maps a name to levels (q,) and quantiles (n, q) in tokens; on the diagonal the
    quantiles mean what they say.
    """
    figure, axes = _figure("Calibration", note, 5.6, 5.2)
    axes.plot([0, 1], [0, 1], color=DARK, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    for (name, (levels, quantiles)), colour in zip(curves.items(), ARM_COLOURS, strict=False):
        share = (true[:, None] <= quantiles).mean(axis=0)
        axes.plot(levels, share, marker="o", markersize=4, color=colour, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("nominal level of the quantile")
    axes.set_ylabel("share of answers at or below it")
    axes.legend(frameon=False, fontsize=9)
    return figure


def error_by_class(errors: Mapping[str, Mapping[str, float]], *, note: str = "") -> Figure:
    """Mean absolute error by class: ``errors[model][class]`` in tokens, a bar per model."""
    figure, axes = _figure("Mean absolute error by class", note, 7.2, 4.4)
    classes = sorted({name for by_class in errors.values() for name in by_class})
    width = 0.8 / max(1, len(errors))
    for i, ((model, by_class), colour) in enumerate(zip(errors.items(), ARM_COLOURS, strict=False)):
        at = np.arange(len(classes)) + (i - (len(errors) - 1) / 2) * width
        bars = axes.bar(
            at, [by_class.get(c, np.nan) for c in classes], width, color=colour, label=model
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=7, color=DARK, padding=1)
    axes.set_xticks(np.arange(len(classes)), classes)
    axes.set_ylabel("mean absolute error, tokens")
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def importances(shares: Mapping[str, float], *, most: int = 15, note: str = "") -> Figure:
    """The columns that gained most: ``shares`` by name, largest first."""
    figure, axes = _figure("What the boosters read", note, 7.2, 4.8)
    names = list(shares)[:most]
    axes.barh(names, [100.0 * shares[name] for name in names], color=BLUE)
    axes.invert_yaxis()
    axes.set_xlabel("share of the training gain, %")
    axes.grid(axis="y", visible=False)
    figure.subplots_adjust(left=0.32)
    return figure


def promotion(
    attained: Mapping[str, float],
    difference: float,
    interval: Sequence[float],
    *,
    note: str = "",
) -> Figure:
    """SLO attainment of champion and challenger, and the paired difference with its interval."""
    figure, axes = _figure("SLO attainment, replayed", note, 6.4, 4.0)
    bars = axes.bar(list(attained), [100 * v for v in attained.values()], 0.5, color=[GREY, BLUE])
    axes.bar_label(bars, fmt="%.1f %%", fontsize=9, color=DARK, padding=2)
    axes.set_ylim(0, 108)
    axes.set_ylabel("requests that met their SLO, %")
    low, high = interval
    axes.set_xlabel(
        f"paired difference {100 * difference:+.1f} points (95 %: {100 * low:+.1f} to "
        f"{100 * high:+.1f})"
    )
    axes.grid(axis="x", visible=False)
    return figure


def interval_width(
    low: Floats, high: Floats, classes: Sequence[str], *, level: str, note: str = ""
) -> Figure:
    """How wide the intervals are, by class: cumulative share against high / low, both (n,)."""
    figure, axes = _figure(f"Width of the {level} interval", note)
    ratio = high / np.maximum(low, 1.0)
    names = np.asarray(classes, dtype=object)
    colours = ("#2f6fb0", "#d9742b", "#6a9f58", "#8a5fa8", "#b0413e", "#4fa3a5", GREY)
    most = [name for name, _ in Counter(classes).most_common(len(colours))]
    for name, colour in zip(sorted(most), colours, strict=False):
        values = np.sort(ratio[names == name])
        share = np.arange(1, len(values) + 1) / len(values)
        label = f"{name} (median {np.median(values):.1f}x)"
        axes.step(values, share, where="post", color=colour, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_xlim(left=1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("upper end / lower end")
    axes.set_ylabel("share of answers")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure
