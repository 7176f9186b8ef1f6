"""The grid's result file as tables: Markdown, every figure with its interval over seeds.

    python -m benchmarks.simulator.grid --out grid.jsonl --summary > summary.md

Attainment differences are paired by cell and seed. Intervals of one cell are Student's t over
its seeds; those of means and shares over cells are bootstrapped over seeds, each seed drawn with
all its cells, since cells share draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.common import interval, table

RULES = ("fcfs", "priority", "edf", "sjf", "llf", "feasible-sjf", "feasible-edf", "hrrn")
BLIND = ("fcfs", "priority", "edf", "bound")  # they know nothing of lengths: one run for all kinds
ORDER = (*RULES, "sa-paper", "sa", "bound")
HEAVY = 0.9  # loads from here on count in the means
MAX_WAIT_S = 120.0
DRAWS = 2000
LEAST_GAP = 1e-6

Line = dict[str, Any]
Setting = tuple[str, str, str, float]  # lengths, workload, arrivals, load
Statistic = Callable[[np.ndarray], np.ndarray]
Cells = dict[Setting, dict[str, dict[int, Line]]]


def over_seeds(statistic: Statistic, seeds: int) -> tuple[float, float, float]:
    """A statistic of all seeds, and its 95 % bootstrap interval over them.

    ``statistic`` takes seed numbers ``(..., seeds)`` and reduces the last axis.
    """
    drawn = statistic(np.random.default_rng(0).integers(seeds, size=(DRAWS, seeds)))
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return float(statistic(np.arange(seeds))), float(low), float(high)


def by_cell(lines: list[Line]) -> Cells:
    """Setting, policy and seed to the line; what is blind to lengths stands in every kind."""
    kinds = sorted({line["lengths"] for line in lines if line["policy"] not in BLIND})
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        for lengths in kinds if line["policy"] in BLIND else [line["lengths"]]:
            setting = (lengths, line["workload"], line["arrivals"], line["load"])
            cells[setting][line["policy"]][line["seed"]] = line
    return {setting: dict(cells[setting]) for setting in sorted(cells)}


def present(cells: Cells) -> list[str]:
    """The policies there are, in the order they are shown."""
    found = {policy for row in cells.values() for policy in row}
    return [policy for policy in ORDER if policy in found]


def mean_of(runs: dict[int, Line], figure: str = "attainment") -> float:
    """Mean of a figure over seeds."""
    return float(np.mean([line[figure] for line in runs.values()]))


def attainment_table(cells: Cells) -> list[str]:
    """A row a cell: mean attainment of every policy, and ``sa`` against the best rule there."""
    names = [name for name in present(cells) if name != "bound"]
    rows = []
    for setting, row in cells.items():
        if "sa" not in row:
            continue
        best = max((r for r in RULES if r in row), key=lambda r: mean_of(row[r]), default=None)
        if best is None:
            continue
        gain, half = interval(paired(row, best))
        rows.append(
            [
                *setting,
                *(f"{mean_of(row[n]):.3f}" if n in row else "" for n in names),
                f"{gain:+.1f} ± {half:.1f} ({best})",
                f"{mean_of(row['bound']):.3f}" if "bound" in row else "",
            ]
        )
    head = ["lengths", "workload", "arrivals", "load", *names]
    return table([*head, "sa − best rule there (95 %)", "bound"], rows)


def paired(row: dict[str, dict[int, Line]], rule: str) -> list[float]:
    """``sa`` minus a rule in attainment points, a value a shared seed."""
    shared = sorted(set(row["sa"]) & set(row[rule]))
    return [100 * (row["sa"][s]["attainment"] - row[rule][s]["attainment"]) for s in shared]


def differences(cells: Cells) -> Iterator[tuple[Setting, str, float, float]]:
    """(cell, rule, mean difference of ``sa`` in points, half its 95 % interval)."""
    for setting, row in cells.items():
        for rule in RULES:
            if "sa" in row and rule in row and (values := paired(row, rule)):
                yield setting, rule, *interval(values)


def difference_table(cells: Cells) -> list[str]:
    """``sa`` minus each rule, cell by cell, and the cells in which it is surely below one."""
    found: dict[Setting, dict[str, tuple[float, float]]] = defaultdict(dict)
    below, count, uncertain = [], 0, 0
    for setting, rule, mean, half in differences(cells):
        found[setting][rule] = (mean, half)
        count += 1
        uncertain += bool(np.isnan(half))
        if mean + half < 0:
            lengths, workload, arrivals, load = setting
            where = f"{lengths}, {workload}, {arrivals}, {load:g}"
            below.append(f"- {where}: {mean:+.2f} ± {half:.2f} points to {rule}")
    rules = [rule for rule in RULES if any(rule in row for row in found.values())]
    rows = [
        [*setting, *(f"{row[r][0]:+.1f} ± {row[r][1]:.1f}" if r in row else "" for r in rules)]
        for setting, row in found.items()
    ]
    losing = len({line.split(":")[0] for line in below})
    verdict = (
        f"Cells in which the interval of the difference to some rule lies wholly below 0: {losing} "
        f"of {len(found)} ({len(below)} of {count} differences; by chance alone "
        f"{0.025 * count:.0f} could, were all policies alike)."
    )
    if uncertain:
        verdict += f" {uncertain} differences rest on one seed and have no interval."
    head = ["lengths", "workload", "arrivals", "load", *rules]
    return [verdict, "", *below, *([""] if below else []), *table(head, rows)]


class Means:
    """Attainment with one kind of lengths, the mean over cells: ``(seeds,)`` for every policy.

    Only the seeds that every cell and policy has; ``seeds`` is empty where there is none.
    """

    def __init__(self, cells: Cells, lengths: str, least: float, most: float = np.inf) -> None:
        rows = [row for s, row in cells.items() if s[0] == lengths and least <= s[3] <= most]
        policies = [p for p in present(cells) if all(p in row for row in rows)]
        sets = [set(row[p]) for row in rows for p in policies]
        self.seeds = sorted(set.intersection(*sets)) if sets else []
        self.of = {
            p: np.mean([[row[p][s]["attainment"] for s in self.seeds] for row in rows], axis=0)
            for p in policies
            if self.seeds
        }

    def __bool__(self) -> bool:
        return bool(self.seeds) and "sa" in self.of and any(r in self.of for r in RULES)

    def mean(self, policy: str, pick: np.ndarray) -> np.ndarray:
        """Mean over the picked seeds ``(..., k)``."""
        return self.of[policy][pick].mean(axis=-1)

    def best_rule(self) -> str:
        """The best single rule by mean over cells and seeds."""
        return max((r for r in RULES if r in self.of), key=lambda r: float(self.of[r].mean()))

    def rule(self, pick: np.ndarray) -> np.ndarray:
        """Attainment of the rule that is best on the picked seeds."""
        return np.max([self.mean(r, pick) for r in RULES if r in self.of], axis=0)

    def gain(self, pick: np.ndarray) -> np.ndarray:
        """``sa`` over the best single rule, points."""
        return 100 * (self.mean("sa", pick) - self.rule(pick))

    def closed(self, pick: np.ndarray) -> np.ndarray:
        """Share of the gap between the best single rule and the bound that ``sa`` closes."""
        gap = self.mean("bound", pick) - self.rule(pick)
        return np.where(gap > LEAST_GAP, self.gain(pick) / 100 / np.maximum(gap, LEAST_GAP), np.nan)

    def of_bound(self, pick: np.ndarray) -> np.ndarray:
        """Attainment of ``sa`` as a share of the bound."""
        return self.mean("sa", pick) / self.mean("bound", pick)


def with_interval(found: tuple[float, float, float], form: str = ".2f") -> str:
    """A value and its interval; a dash where there is none."""
    value, low, high = found
    if np.isnan(value):
        return "–"
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def gap_table(cells: Cells) -> list[str]:
    """By lengths and load: the best single rule, ``sa``, the bound, and the gap closed."""
    loads = sorted({setting[3] for setting in cells})
    rows = []
    for lengths in sorted({setting[0] for setting in cells}):
        spans = [(f"≥ {HEAVY:g}", HEAVY, np.inf), *((f"{x:g}", x, x) for x in loads)]
        for label, least, most in spans:
            means = Means(cells, lengths, least, most)
            if not means or "bound" not in means.of:
                continue
            n = len(means.seeds)
            everyone = np.arange(n)
            rule = means.best_rule()
            rows.append(
                [
                    lengths,
                    label,
                    f"{means.mean(rule, everyone):.3f} ({rule})",
                    f"{means.mean('sa', everyone):.3f}",
                    f"{means.mean('bound', everyone):.3f}",
                    with_interval(over_seeds(means.gain, n), form="+.2f"),
                    with_interval(over_seeds(means.closed, n)),
                    with_interval(over_seeds(means.of_bound, n), form=".3f"),
                ]
            )
    head = ["lengths", "load", "best single rule", "sa", "bound", "sa − rule, points"]
    return table([*head, "share of the gap closed", "sa as share of the bound"], rows)


def kept_table(cells: Cells) -> list[str]:
    """What learned lengths keep of what oracle lengths gain over class lengths, under ``sa``."""
    rows = []
    loads = sorted({setting[3] for setting in cells if setting[3] >= HEAVY})
    for label, least, most in [
        (f"≥ {HEAVY:g}", HEAVY, np.inf),
        *((f"{x:g}", x, x) for x in loads),
    ]:
        kinds = {k: Means(cells, k, least, most) for k in ("class", "learned", "oracle")}
        if not all(kinds.values()):
            continue
        seeds = sorted(set.intersection(*(set(m.seeds) for m in kinds.values())))
        place = {k: [m.seeds.index(s) for s in seeds] for k, m in kinds.items()}

        def of(kind: str, pick: np.ndarray, kinds=kinds, place=place) -> np.ndarray:
            return kinds[kind].mean("sa", np.array(place[kind])[pick])

        def kept(pick: np.ndarray, of=of) -> np.ndarray:
            gain = of("oracle", pick) - of("class", pick)
            part = of("learned", pick) - of("class", pick)
            return np.where(gain > LEAST_GAP, part / np.maximum(gain, LEAST_GAP), np.nan)

        everyone = np.arange(len(seeds))
        figures = [f"{of(k, everyone):.3f}" for k in kinds]
        rows.append([label, *figures, with_interval(over_seeds(kept, len(seeds)))])
    return table(["load", "class", "learned", "oracle", "share of the gain kept"], rows)


def by_load_table(cells: Cells, figure: str, lengths: str, form: str, worst: bool) -> list[str]:
    """A figure by policy and load: the mean over cells and seeds, or the largest."""
    chosen = {s: row for s, row in cells.items() if s[0] == lengths}
    loads = sorted({s[3] for s in chosen})
    rows = []
    for policy in present(chosen):
        if policy == "bound":
            continue
        values = [
            [line[figure] for s, row in chosen.items() if s[3] == load
             for line in row.get(policy, {}).values()]
            for load in loads
        ]  # fmt: skip
        summary = [(max(v) if worst else float(np.mean(v))) if v else np.nan for v in values]
        rows.append([policy, *(f"{v:{form}}" for v in summary)])
    return table(["policy", *(f"load {x:g}" for x in loads)], rows)


def waits_table(cells: Cells) -> list[str]:
    """Who waited beyond the limit, and by how much more than under arrival order."""
    rows = []
    for policy in present(cells):
        # by key: a blind policy's run stands under every kind of lengths
        runs = {
            line["key"]: (line["max_wait_s"], row["fcfs"][seed]["max_wait_s"])
            for row in cells.values()
            for seed, line in row.get(policy, {}).items()
            if "max_wait_s" in line and seed in row.get("fcfs", {})
        }.values()
        if not runs:
            continue
        over = [wait for wait, _ in runs if wait > MAX_WAIT_S]
        avoidable = [wait - max(MAX_WAIT_S, fcfs) for wait, fcfs in runs]
        count = sum(a > 0 for a in avoidable)
        worst = max(wait for wait, _ in runs)
        rows.append(
            [policy, len(runs), len(over), count, f"{worst:.1f}", f"{max(0, *avoidable):.1f}"]
        )
    head = ["policy", "runs", f"over {MAX_WAIT_S:g} s", "of these fcfs was within or shorter"]
    return table([*head, "longest wait s", "most beyond fcfs and the limit s"], rows)


def light_table(cells: Cells) -> list[str]:
    """Below HEAVY: ``sa`` against arrival order in attainment and mean TTFT."""
    rows = []
    for lengths in sorted({s[0] for s in cells}):
        points, ttft = [], []
        for setting, row in cells.items():
            if setting[0] == lengths and setting[3] < HEAVY and "sa" in row and "fcfs" in row:
                points += paired(row, "fcfs")
                for seed in sorted(set(row["sa"]) & set(row["fcfs"])):
                    own, base = row["sa"][seed]["mean_ttft_s"], row["fcfs"][seed]["mean_ttft_s"]
                    ttft.append(100 * (own / base - 1))
        if points:
            rows.append(
                [lengths, len(points), f"{np.mean(points):+.2f}", f"{min(points):+.2f}",
                 f"{np.mean(ttft):+.1f} %", f"{max(ttft):+.1f} %"]
            )  # fmt: skip
    head = ["lengths", "runs", "attainment, points", "worst run", "mean TTFT", "worst run"]
    return table(head, rows)


def time_table(lines: list[Line]) -> list[str]:
    """Time a plan takes, by policy: the median over runs, and the longest p99."""
    taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        if line.get("plan_ms_p50") is not None:
            taken[line["policy"]].append((line["plan_ms_p50"], line["plan_ms_p99"]))
    rows = [
        [
            name,
            len(runs),
            f"{np.median([a for a, _ in runs]):.2f}",
            f"{max(b for _, b in runs):.2f}",
        ]
        for name, runs in sorted(taken.items())
    ]
    return table(["policy", "runs", "median plan ms", "longest p99"], rows)


def summary(lines: list[Line], version: str = "") -> str:
    """Everything, under headings of the third level."""
    cells = by_cell(lines)
    if not any("sa" in row for row in cells.values()):
        return "no run of sa yet"
    seeds = {len(row["sa"]) for row in cells.values() if "sa" in row}
    spread = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    requests = sorted({line["requests"] for line in lines})
    out = [f"{len(lines)} runs, {len(cells)} cells, {spread} seeds, {requests} requests a run."]
    stale = sorted({li["policy"] for li in lines if version and li.get("code") != version})
    if stale:
        out.append(f"Made with other code of scheduler/ than is here now: {', '.join(stale)}.")
    kind = "learned" if any(s[0] == "learned" for s in cells) else min(s[0] for s in cells)
    sections: list[tuple[str, list[str]]] = [
        ("The gap to the bound", gap_table(cells)),
        ("What learned lengths keep", kept_table(cells)),
        ("sa minus each rule, points of attainment", difference_table(cells)),
        ("Attainment", attainment_table(cells)),
        (f"Mean e2e, s ({kind})", by_load_table(cells, "mean_e2e_s", kind, ".1f", False)),
        (
            f"Output tokens/s ({kind})",
            by_load_table(cells, "output_tokens_per_s", kind, ".0f", False),
        ),
        (f"Longest wait, s ({kind})", by_load_table(cells, "max_wait_s", kind, ".1f", True)),
        ("The limit on waiting, all lengths", waits_table(cells)),
        (f"Below load {HEAVY:g}: sa against arrival order", light_table(cells)),
        ("Time of a plan", time_table(lines)),
    ]
    for title, body in sections:
        out += ["", f"### {title}", "", *body]
    return "\n".join(out)
