"""Variants of one policy against the whole of it: paired differences, and what they cost.

Lines are those of ``shapes``; a variant is a policy with parameters there. Every figure is over
the (cell, seed) pairs that the variant, the whole and arrival order all have, and an interval is
Student's t at 95 % over these pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import interval, table
from benchmarks.simulator.shapes_table import HEAVY, LIGHT, TINY, TOLERANCE, Cell, Line, by_cell

Variants = Mapping[str, str]  # name to policy with parameters
ZONES = {
    f"GPU, load ≥ {HEAVY:g}": lambda cell: cell.shape != TINY and cell.load >= HEAVY,
    f"GPU, load ≤ {LIGHT:g}": lambda cell: cell.shape != TINY and cell.load <= LIGHT,
    TINY: lambda cell: cell.shape == TINY,
}


class Pair(NamedTuple):
    """A variant and the whole on the same requests; ``base`` is arrival order's line."""

    cell: Cell
    seed: int
    variant: Line
    whole: Line
    base: Line | None

    @property
    def points(self) -> float:
        """Attainment of the variant above the whole, in points."""
        return 100.0 * float(self.variant["attainment"] - self.whole["attainment"])

    def ratio(self, figure: str) -> float:
        """The variant's figure as a multiple of arrival order's; nan without it."""
        return float("nan") if self.base is None else self.variant[figure] / self.base[figure]


def pairs(lines: Iterable[Line], policy: str, whole: str) -> list[Pair]:
    """The variant ``policy`` beside ``whole`` wherever both were played."""
    found = []
    for cell, row in by_cell(lines).items():
        base = row.get("fcfs", {})
        for seed in sorted(set(row.get(policy, {})) & set(row.get(whole, {}))):
            found.append(Pair(cell, seed, row[policy][seed], row[whole][seed], base.get(seed)))
    return found


def summary_of(own: list[Pair]) -> dict[str, Any]:
    """Means over pairs, the interval of the difference, and cells that it moves."""
    by_cell_points: dict[Cell, list[float]] = {}
    for pair in own:
        by_cell_points.setdefault(pair.cell, []).append(pair.points)
    means = [float(np.mean(points)) for points in by_cell_points.values()]
    return {
        "cells": len(means),
        "pairs": len(own),
        "attainment": float(np.mean([pair.variant["attainment"] for pair in own])),
        "points": interval([pair.points for pair in own]),
        "worst": min(means),
        "best": max(means),
        "worse": sum(mean < -TOLERANCE for mean in means),
        "better": sum(mean > TOLERANCE for mean in means),
        "e2e": float(np.mean([pair.ratio("mean_e2e_s") for pair in own])),
        "tokens": float(np.mean([pair.ratio("output_tokens_per_s") for pair in own])),
        "over_wait_s": max(pair.variant["max_wait_s"] for pair in own),
    }


def figures(lines: Iterable[Line], variants: Variants, whole: str) -> list[dict[str, Any]]:
    """A row a zone and variant that was played, the whole first."""
    lines, found = list(lines), []
    named = {"whole": whole, **variants}
    every = {name: pairs(lines, policy, whole) for name, policy in named.items()}
    for zone, inside in ZONES.items():
        for name, policy in named.items():
            if own := [pair for pair in every[name] if inside(pair.cell)]:
                found.append({"zone": zone, "variant": name, "policy": policy} | summary_of(own))
    return found


def main_table(rows: list[dict[str, Any]]) -> list[str]:
    """The figures as Markdown."""
    shown = []
    for row in rows:
        points = ["", "", ""]
        if row["variant"] != "whole":
            points = [
                "{:+.2f} ± {:.2f}".format(*row["points"]),
                f"{row['worst']:+.1f} to {row['best']:+.1f}",
                f"{row['worse']}, {row['better']} of {row['cells']}",
            ]
        costs = [f"{row['e2e']:.2f}", f"{row['tokens']:.3f}", f"{row['over_wait_s']:.0f}"]
        name = [row["zone"], row["variant"], f"{100 * row['attainment']:.1f}"]
        shown.append([*name, *points, *costs])
    head = ["cells", "variant", "met %", "points to whole (95 %)", "cells' means from, to"]
    head += [f"cells worse, better by {TOLERANCE:g}"]
    return table([*head, "e2e / fcfs", "tokens/s / fcfs", "longest wait s"], shown)


def axis_table(lines: Iterable[Line], variants: Variants, whole: str, axis: str) -> list[str]:
    """Points of each variant to the whole by shape or workload, in overloaded cells."""
    lines = list(lines)
    every = {
        name: [pair for pair in pairs(lines, policy, whole) if pair.cell.load >= HEAVY]
        for name, policy in variants.items()
    }
    present = [name for name, own in every.items() if own]
    values = sorted({getattr(pair.cell, axis) for own in every.values() for pair in own})
    rows = []
    for value in values:
        row = []
        for name in present:
            own = [pair.points for pair in every[name] if getattr(pair.cell, axis) == value]
            row.append("{:+.2f} ± {:.2f}".format(*interval(own)) if own else "")
        rows.append([value, *row])
    return table([axis, *present], rows)


def undominated(rows: list[dict[str, Any]], zone: str) -> list[str]:
    """The zone's variants that no other beats in attainment and in latency at once."""
    own = [row for row in rows if row["zone"] == zone]
    return [
        row["variant"]
        for row in own
        if not any(
            other["attainment"] >= row["attainment"]
            and other["e2e"] <= row["e2e"]
            and (other["attainment"], other["e2e"]) != (row["attainment"], row["e2e"])
            for other in own
        )
    ]
