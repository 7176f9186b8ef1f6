"""The shapes' result file as tables: Markdown, differences paired by cell and seed.

    python -m benchmarks.simulator.shapes_table shapes.jsonl --policies sa sa:iterations=0

Intervals are Student's t at 95 %: of a cell over its seeds, of a mean over cells over the seeds'
means. "Best rule" is the rule with the best mean over seeds in that very cell, so no single rule
is as good over all cells. GPU shapes are all but ``tiny-cpu``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.simulator.grid import read_lines
from benchmarks.simulator.grid_tables import BLIND, RULES, interval, table

HEAVY = 1.1
LIGHT = 0.8
TOLERANCE = 0.5  # points
TINY = "tiny-cpu"

Line = dict[str, Any]


class Cell(NamedTuple):
    """Where policies are compared."""

    lengths: str
    shape: str
    workload: str
    load: float


Runs = dict[int, Line]  # by seed
Cells = dict[Cell, dict[str, Runs]]


def by_cell(lines: Iterable[Line]) -> Cells:
    """Cell, policy and seed to the line; what is blind to lengths stands in every kind."""
    lines = list(lines)
    kinds = sorted({line["lengths"] for line in lines if line["policy"] not in BLIND})
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        for lengths in kinds if line["policy"] in BLIND else [line["lengths"]]:
            cell = Cell(lengths, line["shape"], line["workload"], line["load"])
            cells[cell][line["policy"]][line["seed"]] = line
    return {cell: dict(cells[cell]) for cell in sorted(cells)}


def mean_of(runs: Runs, figure: str = "attainment") -> float:
    """Mean over seeds."""
    return float(np.mean([line[figure] for line in runs.values()]))


def best_rule(row: dict[str, Runs]) -> str | None:
    """The rule with the best mean in the cell; arrival order where it is as good."""
    return max((r for r in RULES if r in row), key=lambda r: mean_of(row[r]), default=None)


def paired(row: dict[str, Runs], policy: str, rule: str) -> dict[int, float]:
    """Points of attainment of a policy above a rule, by shared seed."""
    shared = sorted(set(row[policy]) & set(row[rule]))
    return {
        seed: 100 * (row[policy][seed]["attainment"] - row[rule][seed]["attainment"])
        for seed in shared
    }


def ratio(row: dict[str, Runs], policy: str, figure: str) -> float:
    """A figure's mean as a multiple of arrival order's; nan without it."""
    if "fcfs" not in row:
        return float("nan")
    return mean_of(row[policy], figure) / mean_of(row["fcfs"], figure)


def cell_table(cells: Cells, policy: str) -> list[str]:
    """A row a cell: arrival order, the best rule, the policy, and what it costs."""
    rows = []
    for cell, row in cells.items():
        rule = best_rule(row)
        if policy not in row or rule is None:
            continue
        gain, half = interval(list(paired(row, policy, rule).values()))
        fcfs = f"{100 * mean_of(row['fcfs']):.1f}" if "fcfs" in row else ""
        rows.append(
            [
                *cell,
                fcfs,
                f"{100 * mean_of(row[rule]):.1f} ({rule})",
                f"{100 * mean_of(row[policy]):.1f}",
                f"{gain:+.1f} ± {half:.1f}",
                f"{ratio(row, policy, 'mean_e2e_s'):.2f}",
                f"{ratio(row, policy, 'output_tokens_per_s'):.3f}",
                f"{mean_of(row[policy], 'plan_ms_p50'):.2f}",
                f"{mean_of(row[policy], 'preemptions'):.0f}",
                f"{mean_of(row[policy], 'yields'):.0f}",
            ]
        )
    head = ["lengths", "shape", "workload", "load", "fcfs", "best rule", policy]
    costs = ["− best rule", "e2e / fcfs", "tokens/s / fcfs", "plan ms", "preempted", "gave up"]
    return table([*head, *costs], rows)


def difference_table(cells: Cells, policy: str) -> list[str]:
    """The policy less each rule, cell by cell."""
    present = [r for r in RULES if any(r in row for row in cells.values())]
    rows = []
    for cell, row in cells.items():
        if policy in row:
            spans = {r: interval(list(paired(row, policy, r).values())) for r in RULES if r in row}
            shown = [
                f"{spans[r][0]:+.1f} ± {spans[r][1]:.1f}" if r in spans else "" for r in present
            ]
            rows.append([*cell, *shown])
    return table(["lengths", "shape", "workload", "load", *present], rows)


def losses(cells: Cells, policy: str) -> list[str]:
    """A line for each cell where the policy is below a rule: surely, or by over TOLERANCE.

    It names the rule that it is farthest below, and how many more there are.
    """
    found, count = [], 0
    for cell, row in cells.items():
        if policy not in row:
            continue
        count += 1
        spans = {r: interval(list(paired(row, policy, r).values())) for r in RULES if r in row}
        below = [r for r, (mean, half) in spans.items() if mean + half < 0 or mean < -TOLERANCE]
        if below:
            rule = min(below, key=lambda r: spans[r][0])
            mean, half = spans[rule]
            where = f"{cell.lengths}, {cell.shape}, {cell.workload}, {cell.load:g}"
            sure = "surely" if mean + half < 0 else "on the mean"
            others = f", {len(below) - 1} more rules" if len(below) > 1 else ""
            found.append((mean, f"- {where}: {mean:+.2f} ± {half:.2f} to {rule} ({sure}){others}"))
    found.sort()
    verdict = (
        f"{policy}: {len(found)} of {count} cells below some rule (the interval wholly below 0, "
        f"or the mean below −{TOLERANCE:g} point)."
    )
    return [verdict, "", *(text for _, text in found)]


def mean_over(
    cells: Cells, policy: str, pick: Callable[[Cell], bool], against: str | None = None
) -> tuple[float, float, int, float]:
    """(mean, half its interval, cells, worst cell's mean) of the policy less a rule, in points.

    ``against`` None is the best rule of each cell. Over the seeds that all these cells have.
    """
    values: list[dict[int, float]] = []
    for cell, row in cells.items():
        rule = against or best_rule(row)
        if pick(cell) and policy in row and rule in row:
            values.append(paired(row, policy, rule))
    if not values:
        return (float("nan"), float("nan"), 0, float("nan"))
    worst = min(float(np.mean(list(v.values()))) for v in values)
    shared = sorted(set.intersection(*(set(v) for v in values)))
    by_seed = [float(np.mean([v[seed] for v in values])) for seed in shared]
    return (*interval(by_seed), len(values), worst)


def means_table(cells: Cells, policy: str) -> list[str]:
    """Means over cells by lengths and load, with e2e and tokens/s as multiples of fcfs's."""
    rows = []
    for lengths in sorted({cell.lengths for cell in cells}):
        for name, pick in (
            (f"GPU, load ≥ {HEAVY:g}", lambda c: c.shape != TINY and c.load >= HEAVY),
            (f"GPU, load ≤ {LIGHT:g}", lambda c: c.shape != TINY and c.load <= LIGHT),
            (f"{TINY}, load ≥ {HEAVY:g}", lambda c: c.shape == TINY and c.load >= HEAVY),
            (f"{TINY}, load ≤ {LIGHT:g}", lambda c: c.shape == TINY and c.load <= LIGHT),
        ):

            def chosen(cell: Cell, pick=pick, lengths=lengths) -> bool:
                return cell.lengths == lengths and pick(cell)

            own = [row for cell, row in cells.items() if chosen(cell) and policy in row]
            if not own:
                continue
            gain, half, count, worst = mean_over(cells, policy, chosen)
            single = {r: mean_over(cells, policy, chosen, r) for r in RULES}
            rule = min((r for r in RULES if single[r][2] == count), key=lambda r: single[r][0])
            rows.append(
                [
                    lengths,
                    name,
                    count,
                    f"{np.mean([100 * mean_of(row[policy]) for row in own]):.1f}",
                    f"{gain:+.1f} ± {half:.1f}",
                    f"{worst:+.1f}",
                    f"{single[rule][0]:+.1f} ± {single[rule][1]:.1f} ({rule})",
                    f"{np.mean([ratio(row, policy, 'mean_e2e_s') for row in own]):.2f}",
                    f"{np.mean([ratio(row, policy, 'output_tokens_per_s') for row in own]):.3f}",
                ]
            )
    head = ["lengths", "cells", "count", policy, "− best rule of each cell", "worst cell"]
    return table([*head, "− the one best rule", "e2e / fcfs", "tokens/s / fcfs"], rows)


def by_shape_table(cells: Cells, policies: list[str], axis: str) -> list[str]:
    """Each policy less the best rule of each cell, mean over cells, by shape or workload."""
    values = sorted({getattr(cell, axis) for cell in cells})
    rows = []
    for lengths in sorted({cell.lengths for cell in cells}):
        for value in values:

            def chosen(cell: Cell, lengths=lengths, value=value) -> bool:
                heavy = cell.load >= HEAVY and cell.lengths == lengths
                return heavy and getattr(cell, axis) == value

            found = [mean_over(cells, policy, chosen) for policy in policies]
            if any(count for _, _, count, _ in found):
                rows.append([lengths, value, *(f"{m:+.1f} ± {h:.1f}" for m, h, _, _ in found)])
    return table(["lengths", axis, *policies], rows)


def summary(lines: list[Line], policies: list[str], *, full: bool = True) -> str:
    """Everything, under headings of the third level."""
    cells = by_cell(lines)
    policies = [p for p in policies if any(p in row for row in cells.values())]
    if not policies:
        return "no run of these policies yet"
    seeds = {line["seed"] for line in lines}
    out = [f"{len(lines)} runs, {len(cells)} cells, {len(seeds)} seeds."]
    for policy in policies:
        out += ["", f"### {policy}: means over cells", "", *means_table(cells, policy)]
        out += ["", f"### {policy}: cells below a rule", "", *losses(cells, policy)]
    for axis in ("shape", "workload"):
        title = f"### By {axis}, load ≥ {HEAVY:g}: points above the best rule of each cell"
        out += ["", title, "", *by_shape_table(cells, policies, axis)]
    for policy in policies if full else []:
        out += ["", f"### {policy}: every cell", "", *cell_table(cells, policy)]
        out += ["", f"### {policy} less each rule, points", "", *difference_table(cells, policy)]
    return "\n".join(out)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--policies", nargs="+", default=["sa"])
    parser.add_argument("--short", action="store_true", help="no table of single cells")
    parser.add_argument("--json", action="store_true", help="only the losses and means, as JSON")
    args = parser.parse_args()
    lines = read_lines(args.file)
    if not args.json:
        print(summary(lines, args.policies, full=not args.short))
        return
    cells = by_cell(lines)
    found = {}
    for policy in args.policies:
        for lengths in sorted({cell.lengths for cell in cells}):
            mean, half, count, worst = mean_over(
                cells,
                policy,
                lambda c, k=lengths: c.lengths == k and c.shape != TINY and c.load >= HEAVY,
            )
            found[f"{policy}:{lengths}"] = {
                "gpu_heavy_points": mean,
                "half_width": half,
                "cells": count,
                "worst_cell_points": worst,
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
