"""The report of `demo-real` for people: the same page on the terminal and in a file.

It explains itself, as whoever reads it may have seen nothing else of this project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.training import console

REPORT_FILE, PAGE_FILE = "demo-real.json", "demo-real.md"
WHAT = {
    "foreign": "a predictor from another model's answers",
    "calibrate": "this model's step times, on this machine",
    "learn": "its answers logged and learned from, the new version promoted or refused",
    "twice": "unseen prompts answered twice",
    "bench": "stock vLLM and lengthwise in turn",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A heading, sentences, a table (may be empty) and sentences about it."""

    title: str
    before: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    after: tuple[str, ...] = ()


def show_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write document and page into `folder` and print the page; the document is the last line."""
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    parts = report_parts(report)
    (folder / PAGE_FILE).write_text(as_markdown(parts), encoding="utf-8")
    for part in parts:
        _print_lines(("", f"# {part.title}", *part.before))
        if part.columns:
            console.print_table("", part.columns, part.rows)
        _print_lines(part.after)
    print()
    print(f"report: {folder / PAGE_FILE}, figures of the comparison: {report['page']}")
    console.print_json(report)


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def as_markdown(parts: Sequence[Part]) -> str:
    """The parts as one page."""
    blocks = []
    for number, part in enumerate(parts):
        blocks.append(f"{'##' if number else '#'} {part.title}")
        blocks += part.before
        if part.columns:
            table = [part.columns, ("---",) * len(part.columns), *part.rows]
            blocks.append("\n".join("| " + " | ".join(row) + " |" for row in table))
        blocks += part.after
    return "\n\n".join(blocks) + "\n"


def report_parts(report: Mapping[str, Any]) -> list[Part]:
    """The page, part by part."""
    return [
        _what_ran(report),
        _comparison(report),
        _predictors(report),
        _learned(report),
        _time(report),
    ]


def _what_ran(report: Mapping[str, Any]) -> Part:
    settings, machine = report["settings"], report["machine"]
    limits = " ".join(
        name if value is None else f"{name} {value}"
        for name, value in report["model"]["limits"].items()
    )
    return Part(
        "A real model, its own answers: lengthwise against stock vLLM",
        (
            f"Model: {report['model']['description']}; weights {report['model']['weights']}.",
            f"Prompts: those of data source {report['prompts_of']}; none that was learned from is "
            "judged on. "
            f"Answers: the model's own, at most {settings['max_tokens']} tokens, temperature "
            f"{settings['temperature']:g}: no length is forced, and none is told to a scheduler.",
            f"Engine: {machine['engine']} on {machine['processor']}, {machine['cores']} cores, "
            f"with {limits}.",
        ),
    )


def _comparison(report: Mapping[str, Any]) -> Part:
    settings, bench = report["settings"], report["measured"]["bench"]
    run, rows = bench["run"], [_arm_row(arm, bench["diagnostics"]) for arm in bench["arms"]]
    after = []
    for label, paired in bench["against_stock"].items():
        after.append(
            f"{label} less {paired['base']} on the same requests: "
            f"{_points(paired['attainment_difference'], paired['difference_ci95'])}."
        )
    after += [f"Answers of the same length, {pair}: {same}." for pair, same in
              run["same_length"].items()]  # fmt: skip
    return Part(
        f"Stock vLLM and lengthwise, {settings['requests']} requests at load "
        f"{settings['load']:g} (measured)",
        (
            "stock is vLLM as it is; in POLICY:LENGTHS, sa is lengthwise's annealing, learned what "
            "the predictor in force says of each prompt.",
            f"Load 1 is {report['capacity_rps']:.2f} requests/s, measured just before. Every arm "
            "gets the same requests at the same times with the same seeds. A request meets its "
            "SLO when all its objectives hold: " + "; ".join(report["objectives"]) + ".",
        ),
        ("arm", "SLO met", "95 % interval", "lost", "cut at the limit", "mean TTFT s",
         "mean e2e s", "tokens/s"),
        tuple(rows), tuple(after),
    )  # fmt: skip


def _arm_row(arm: Mapping[str, Any], diagnostics: Mapping[str, Any]) -> tuple[str, ...]:
    label = arm["policy"] if arm["policy"] == "stock" else f"{arm['policy']}:{arm['lengths']}"
    low, high = (100 * end for end in arm["attainment_ci95"])
    return (
        label,
        f"{100 * arm['attainment']:.1f} %",
        f"{low:.1f} to {high:.1f}",
        str(arm["lost"]),
        str(diagnostics[label]["cut_at_max_tokens"]),
        f"{arm['mean_ttft_s']:.2f}",
        f"{arm['mean_e2e_s']:.2f}",
        f"{arm['output_tokens_per_s']:.0f}",
    )


def _predictors(report: Mapping[str, Any]) -> Part:
    judged = report["measured"]["predictors"]
    columns, rows = ["predicted by"], {name: [name] for name in judged[0]["rows"]}
    for found in judged:
        at = f"{found['temperature']:g}"
        columns += [f"T {at}: tau", "in class", "MAE", "in 80 % (due)"]
        for name, row in found["rows"].items():
            rows[name] += [
                f"{row['tau']:.3f}",
                "-" if row["within_class_tau"] is None else f"{row['within_class_tau']:.3f}",
                f"{row['mae']:.1f}",
                "-"
                if row["coverage"] is None
                else f"{row['coverage']:.2f} ({row['coverage_due']:.2f})",
            ]
    answers = [
        f"Temperature {found['temperature']:g}: {found['answers']} answers of "
        f"{found['mean_tokens']:.0f} tokens on average (median {found['median_tokens']:.0f}), "
        f"{found['cut_at_max_tokens']} cut at the limit; {100 * found['same_length_twice']:.0f} % "
        f"as long the second time. Taus of so few are known to about ± "
        f"{found['tau_known_to']:.2f}."
        for found in judged
    ]
    return Part(
        "How well lengths are known beforehand, prompts never seen (measured)",
        (
            "Tau: Kendall's rank correlation with the true length, 0 for a guess, 1 for the right "
            "order; beside it the mean of each class's own. MAE: mean absolute error in tokens. In "
            "80 %: share of answers inside the 80 % interval, and what it should hold (more where "
            "it ends at the limit). T: temperature. Every prompt was answered twice. "
            "The second answer is a single draw of what a perfect predictor would know; what that "
            "one would reach is reckoned: .71 of its error, and a Gaussian copula's tau.",
        ),
        tuple(columns), tuple(map(tuple, rows.values())), tuple(answers),
    )  # fmt: skip


def _learned(report: Mapping[str, Any]) -> Part:
    answers, modeled = report["measured"]["answers"], report["modeled"]["promotion"]
    versions, quartiles = report["versions"], answers["quartiles_tokens"]
    reload_s = report["measured"]["reload_s"]
    moved = "promoted" if modeled["promoted"] else f"refused ({'; '.join(modeled['reasons'])})"
    lines = [
        f"{answers['answered']} answers were logged while the server predicted with "
        f"{versions['foreign']}, trained on {report['prompts_of']}'s answers; "
        f"{answers['lost']} lost, {answers['cut_at_max_tokens']} cut at the limit, mean "
        f"{answers['mean_tokens']:.0f} tokens, quartiles "
        f"{', '.join(f'{q:.0f}' for q in quartiles)}.",
        f"{versions['own']} was trained on them and {moved}: "
        f"{_points(modeled['attainment_difference'], modeled['difference_ci95'])} of SLOs met, "
        f"modeled: {modeled['requests']} requests of the log replayed in the simulator.",
    ]
    if reload_s is not None:
        lines.append(f"The running server took it over in {reload_s:.1f} s (measured).")
    lines.append(f"The comparison above is with {versions['served']}.")
    return Part("What was learned, and what became of it", tuple(lines))


def _time(report: Mapping[str, Any]) -> Part:
    rows = [
        (
            f"{name}: {WHAT[name]}",
            f"{stage['seconds']:.0f}",
            ", ".join(map(_text, stage["load_average"])),
        )
        for name, stage in report["stages"].items()
    ]
    total = sum(stage["seconds"] for stage in report["stages"].values())
    return Part(
        "How long it took",
        (),
        ("stage", "seconds", "load average before, after"),
        (*rows, ("all", f"{total:.0f}", "")),
    )


def _points(difference: float, ends: Sequence[float]) -> str:
    low, high = (100 * end for end in ends)
    return f"{100 * difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
