"""One self-contained HTML page from the files of a bench or simulate run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from lengthwise.data.lines import read_json_lines
from lengthwise.data.slo import Slo
from lengthwise.training.bench.engines.client import QueueSample
from lengthwise.training.bench.results.emulation import caution
from lengthwise.training.bench.results.records import RequestRecord
from lengthwise.training.bench.results.report_figures import (
    QueueLog,
    Records,
    arm_colours,
    attainment_figure,
    attainment_over_time_figure,
    latency_figure,
    prediction_figure,
    queue_figure,
)
from lengthwise.training.bench.results.result import ArmResult, BenchResult, read_result

RESULT_FILE, RECORDS_FILE, QUEUE_FILE, REPORT_FILE = (
    "result.json", "records.jsonl", "queue.jsonl", "report.html",
)  # fmt: skip


LATE_CLIENT_MS = 250.0
KINDS = {
    "measured": "measured",
    "emulated": "emulated: real servers on a device that only takes the time",
    "emulated, warped": "emulated in warped time: real schedulers, no servers",
    "modeled": "modeled, no engine ran",
}


def write_run(directory: Path, result: BenchResult, records: Records, queue: QueueLog) -> Path:
    """Write result, records, queue samples and the page into `directory`; return the page."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULT_FILE).write_text(result.to_line() + "\n", encoding="utf-8")
    with (directory / RECORDS_FILE).open("w", encoding="utf-8") as file:
        for label, rows in records.items():
            for record in rows:
                file.write(json.dumps({"arm": label, **record.to_row()}) + "\n")
    with (directory / QUEUE_FILE).open("w", encoding="utf-8") as file:
        for label, samples in queue.items():
            for repeat, s in samples:
                row = {"arm": label, "repeat": repeat, "at_s": s.at_s}
                file.write(json.dumps(row | {"waiting": s.waiting, "running": s.running}) + "\n")
    page = directory / REPORT_FILE
    page.write_text(render(result, records, queue), encoding="utf-8")
    return page


def read_run(directory: Path) -> tuple[BenchResult, Records, QueueLog]:
    """The inverse of `write_run`.

    Raises:
        InputError: a file is missing or malformed.
    """
    result = read_result(Path(directory) / RESULT_FILE)
    records: dict[str, list[RequestRecord]] = {}
    queue: dict[str, list[tuple[int, QueueSample]]] = {}
    for row in _rows(Path(directory) / RECORDS_FILE):
        limits = {k: row.pop(f"slo_{k}_ms") for k in ("ttft", "tpot", "e2e")}
        seconds = {f"{k}_s": None if v is None else v / 1e3 for k, v in limits.items()}
        slo = Slo(**seconds, slo_class=row.pop("slo_class"))
        for derived in ("tpot_s", "met"):
            row.pop(derived)
        records.setdefault(row.pop("arm"), []).append(RequestRecord(slo=slo, **row))
    for row in _rows(Path(directory) / QUEUE_FILE):
        sample = QueueSample(row["at_s"], row["waiting"], row["running"])
        queue.setdefault(row["arm"], []).append((row["repeat"], sample))
    return result, records, queue


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_json_lines(path)]


def headline(result: BenchResult) -> str:
    """The outcome in one sentence: the best arm against the first one."""
    base, best = result.arms[0], best_arm(result)
    if best is None:
        return f"{base.label} met the SLO of {_percent(base.attainment)} of requests"
    return (
        f"{best.label} met the SLO of {_percent(best.attainment)} of requests, "
        f"{base.label} of {_percent(base.attainment)}"
    )


def subline(result: BenchResult) -> str | None:
    """How sure the headline is."""
    best = best_arm(result)
    paired = result.against_base.get(best.label) if best else None
    if not paired or not paired.get("difference_ci95"):
        return None
    low, high = (100 * d for d in paired["difference_ci95"])
    middle = 100 * paired["attainment_difference"]
    return (
        f"Paired difference on the same requests: {middle:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f})."
    )


def warnings(result: BenchResult) -> list[str]:
    """What should make a reader doubt the figures."""
    found = []
    if result.emulation is not None and (doubt := caution(result.emulation)) is not None:
        found.append(doubt)
    for label, checks in result.diagnostics.items():
        late_ms = checks.get("send_lag_ms_p99") or 0.0
        if late_ms > LATE_CLIENT_MS:
            found.append(
                f"{label}: the client sent up to {late_ms:.0f} ms late (p99); this machine was "
                "busy with something else"
            )
        if wrong := checks.get("length_mismatches"):
            found.append(f"{label}: {wrong} answers did not have the replayed length")
        if failed := checks.get("plan_fallbacks"):
            found.append(f"{label}: {failed} plans fell back to arrival order")
    return found


def best_arm(result: BenchResult) -> ArmResult | None:
    """The best arm one could run (no oracle, if there is another) but for the first, the base."""
    others = [arm for arm in result.arms[1:] if arm.attainment is not None]
    others = [arm for arm in others if arm.lengths != "oracle"] or others
    return max(others, key=lambda arm: arm.attainment or 0.0, default=None)


def render(result: BenchResult, records: Records, queue: QueueLog) -> str:
    """The page as HTML text; no network, no script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": _percent,
        "seconds": _seconds,
        "number": _number,
        "plain": _plain,
    }
    learned = next((rows for rows in records.values() if _has_predictions(rows)), [])
    return environment.get_template("report_template.html").render(
        result=result,
        headline=headline(result),
        subline=subline(result),
        warnings=warnings(result),
        colours=arm_colours([arm.label for arm in result.arms]),
        classes=sorted({c for arm in result.arms for c in arm.per_class}),
        objectives=objectives(records),
        attainment_svg=attainment_figure(result),
        latency_svg=latency_figure(records),
        over_time_svg=attainment_over_time_figure(records),
        queue_svg=queue_figure(queue) if any(queue.values()) else None,
        prediction_svg=prediction_figure(learned),
        kind=KINDS[result.provenance],
        provenance_rows=_flat(result.run)
        + ([] if result.emulation is None else _flat(result.emulation.model_dump())),
        diagnostics=result.diagnostics,
    )


def objectives(records: Records) -> dict[str, str]:
    """What each class asked for, in words."""
    found: dict[str, set[str]] = {}
    for rows in records.values():
        for r in rows:
            parts = [
                f"{name} ≤ {value * scale:.4g} {unit}"
                for name, value, scale, unit in (
                    ("TTFT", r.slo.ttft_s, 1, "s"),
                    ("TPOT", r.slo.tpot_s, 1e3, "ms"),
                    ("e2e", r.slo.e2e_s, 1, "s"),
                )
                if value is not None
            ]
            found.setdefault(r.slo_class, set()).add(", ".join(parts) or "best effort")
    return {
        name: next(iter(texts)) if len(texts) == 1 else f"{len(texts)} different objectives"
        for name, texts in sorted(found.items())
    }


def _has_predictions(rows: Sequence[RequestRecord]) -> bool:
    return any(r.predicted_tokens is not None for r in rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1e3:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def arm_rows(arms: Sequence[ArmResult]) -> list[dict[str, str]]:
    """The terminal's table: one row an arm, a column of attainment for each class."""
    classes = sorted({name for arm in arms for name in arm.per_class})
    return [
        {
            "arm": arm.label,
            "SLO met": _percent(arm.attainment),
            "95 % interval": "–"
            if arm.attainment_ci95 is None
            else f"{100 * arm.attainment_ci95[0]:.1f} – {100 * arm.attainment_ci95[1]:.1f}",
            **{
                name: _percent(arm.per_class[name].attainment) if name in arm.per_class else "–"
                for name in classes
            },
            "lost": f"{arm.lost}/{arm.requests}",
            "TTFT mean, p99": f"{_seconds(arm.mean_ttft_s)}, {_seconds(arm.p99_ttft_s)}",
            "e2e mean, p99": f"{_seconds(arm.mean_e2e_s)}, {_seconds(arm.p99_e2e_s)}",
            "TPOT": _seconds(arm.mean_tpot_s),
            "tokens/s": _number(arm.output_tokens_per_s, 0),
            "plan p99": "–" if arm.plan_ms_p99 is None else f"{arm.plan_ms_p99:.2f} ms",
        }
        for arm in arms
    ]
