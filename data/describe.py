"""What is in a source: rows, lengths, licences, splits; a dict for machines, tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lengthwise.data.arena.traces import READERS, Trace, read_servegen, read_vicuna, reader_name
from lengthwise.data.errors import InputError
from lengthwise.data.lines import read_json_lines
from lengthwise.data.locations import data_root, downloads_root
from lengthwise.data.request_log import log_to_table, read_request_log
from lengthwise.data.request_log.errors_of import prediction_errors
from lengthwise.data.slo import OBJECTIVES
from lengthwise.data.sources.catalogue import CATALOGUE
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import SPLITS, split_of
from lengthwise.data.table import PromptTable
from lengthwise.data.workload import WorkloadRequest, read_workload

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Description = dict[str, Any]


def describe(spec: str) -> Description:
    """Figures of anything `load_table` takes, a workload file, or a trace; keys by `kind`.

    "prompts": rows, by (rows per source, task and class), licenses, censored_share, groups,
    distinct_prompts, splits, duplicates_across_splits. "request_log": those and statuses,
    met_share, torn_lines, predictions (`prediction_errors`). "workload", "trace": arrivals (span_s,
    rate_rps, gap_cv, peak_rps). "servegen": clients per group. Lengths are {mean, p50, p95, max}
    tokens.
    """
    path = _file_of(spec)
    if path is not None and path.is_dir():
        return {"spec": spec, **_of_log(path)}
    if path is not None:
        kind = _kind_of(path)
        if kind == "workload":
            return {"spec": spec, **_of_workload(read_workload(path))}
        if kind == "servegen":
            return {"spec": spec, **_of_servegen(path)}
        if kind == "vicuna":
            return {"spec": spec, **_of_vicuna(path)}
        if kind in READERS:
            return {"spec": spec, **_of_trace(READERS[kind](path))}
    return {"spec": spec, **_of_table(load_table(spec))}


def render(description: Description, console: Console) -> None:
    """Print a description as tables."""
    from rich.table import Table

    head = Table(title=str(description["spec"]), show_header=False)
    for key, value in description.items():
        if key not in ("spec", "by", "predictions") and value is not None:
            head.add_row(key.replace("_", " "), _text(value))
    console.print(head)
    if description.get("predictions"):
        console.print(_errors_table(description["predictions"]))
    rows = description.get("by")
    if not rows:
        return
    keys = [key for key, value in rows[0].items() if not isinstance(value, dict)]
    lengths = [key for key, value in rows[0].items() if isinstance(value, dict)]
    body = Table(title="by " + ", ".join(k for k in keys if isinstance(rows[0][k], str)))
    for key in keys:
        number = not isinstance(rows[0][key], str)
        body.add_column(key.replace("_", " "), justify="right" if number else "left")
    for key in lengths:
        body.add_column(f"{key.replace('_', ' ')} p50/p95/max", justify="right")
    for row in rows:
        figures = [f"{row[k]['p50']:.0f}/{row[k]['p95']:.0f}/{row[k]['max']}" for k in lengths]
        body.add_row(*(_text(row[key]) for key in keys), *figures)
    console.print(body)


def _errors_table(predictions: list[dict[str, Any]]) -> Table:
    """Champion and shadow on the same requests, one above the other."""
    from rich.table import Table

    table = Table(title="predictions against finished answers")
    for key in predictions[0]:
        number = key not in ("role", "version", "beside")
        table.add_column(key.replace("_", " "), justify="right" if number else "left")
    for side in predictions:
        table.add_row(*("-" if value is None else _text(value) for value in side.values()))
    return table


def _of_table(table: PromptTable) -> Description:
    sides = split_of(list(table["group"]))
    homes = pd.Series(sides).groupby(table["id"].to_numpy()).nunique()
    return {
        "kind": "prompts",
        "source_label": table.attrs["source_label"],
        "data_sha256": table.attrs["data_sha256"],
        "tokenizer": table.attrs["tokenizer"],
        "rows": len(table),
        "distinct_prompts": int(table["id"].nunique()),
        "groups": int(table["group"].nunique()),
        "splits": {side: int((sides == side).sum()) for side in SPLITS},
        "duplicates_across_splits": int((homes > 1).sum()),
        "censored_share": float(table["censored"].mean()),
        "licenses": _tally(table["license"]),
        **_lengths(table["prompt_tokens"], table["output_tokens"]),
        "by": [
            {
                **dict(zip(("source", "task", "slo_class"), map(str, key), strict=True)),
                "rows": len(rows),
                "censored_share": float(rows["censored"].mean()),
                **_lengths(rows["prompt_tokens"], rows["output_tokens"]),
            }
            for key, rows in table.groupby(["source", "task", "slo_class"])
        ],
    }


def _of_log(folder: Path) -> Description:
    frame = read_request_log(folder)
    judged = frame["met"].dropna()
    outcome = {
        "kind": "request_log",
        "files": frame.attrs["files"],
        "logged_rows": len(frame),
        "torn_lines": frame.attrs["torn_lines"],
        "statuses": _tally(frame["status"]),
        "met_share": float(judged.astype(bool).mean()) if len(judged) else None,
        **_arrivals(frame["arrival_unix_s"].dropna().sort_values()),
    }
    if not frame["status"].isin(("finished", "length")).any():
        return outcome
    outcome["predictions"] = prediction_errors(frame)
    return {**_of_table(log_to_table(frame, f"log:{folder.name}")), **outcome}


def _of_workload(requests: list[WorkloadRequest]) -> Description:
    frame = pd.DataFrame(
        {
            "slo_class": [r.slo.slo_class for r in requests],
            "slo": [_slo_text(r) for r in requests],
            "prompt_tokens": [r.prompt_tokens for r in requests],
            "output_tokens": [r.output_tokens for r in requests],
        }
    )
    return {
        "kind": "workload",
        "rows": len(requests),
        "with_prompt_text": sum(r.prompt is not None for r in requests),
        **_arrivals([r.arrival_s for r in requests]),
        **_lengths(frame["prompt_tokens"], frame["output_tokens"]),
        "by": [
            {
                **dict(zip(("slo_class", "slo"), map(str, key), strict=True)),
                "rows": len(rows),
                **_lengths(rows["prompt_tokens"], rows["output_tokens"]),
            }
            for key, rows in frame.groupby(["slo_class", "slo"])
        ],
    }


def _of_trace(trace: Trace) -> Description:
    return {
        "kind": "trace",
        "rows": len(trace),
        **(_arrivals(trace.arrival_s) if trace.arrival_s is not None else {}),
        **_lengths(trace.prompt_tokens, trace.output_tokens),
    }


def _of_servegen(path: Path) -> Description:
    clients = read_servegen(path)
    groups = sorted({client.group for client in clients})
    return {
        "kind": "servegen",
        "clients": len(clients),
        "by": [
            {
                "group": group,
                "clients": len(members),
                "mean_rate_rps": float(sum(m.windows["rate_rps"].mean() for m in members)),
                "span_days": float(max(m.windows["start_s"].max() for m in members) / 86_400),
            }
            for group in groups
            for members in [[client for client in clients if client.group == group]]
        ],
    }


def _of_vicuna(path: Path) -> Description:
    frame = read_vicuna(path)
    return {
        "kind": "trace",
        "rows": len(frame),
        "output_tokens": _spread(frame["output_tokens"]),
        "by": [
            {
                "predicted_class": str(key),
                "rows": len(rows),
                "output_tokens": _spread(rows["output_tokens"]),
            }
            for key, rows in frame.groupby("predicted_class")
        ],
    }


def _file_of(spec: str) -> Path | None:
    """The file behind a spec that is no table by name: a path, or a trace by its name."""
    if spec in CATALOGUE and CATALOGUE[spec].kind == "trace":
        from lengthwise.data.sources.fetch import fetched_file

        fetched = fetched_file(spec, downloads_root())
        root = data_root()
        there = sorted(root.glob(f"traces/{spec}*")) if root else []
        if not fetched and not there:
            raise InputError(f"{spec} is not here yet; run: lengthwise data fetch {spec}")
        return fetched or there[0]
    path = Path(spec)
    return path if path.exists() else None


def _kind_of(path: Path) -> str | None:
    if ".csv" in path.suffixes or ".tar" in path.suffixes:
        kind = reader_name(path)
        if kind is None:
            raise InputError(f"{path}: no known trace; its name must say which (azure, arxiv, ...)")
        return kind
    if ".jsonl" not in path.suffixes:
        return None
    _, first = next(read_json_lines(path), (0, {}))
    if "arrival_s" in first:
        return "workload"
    return "mooncake" if {"timestamp", "input_length"} <= set(first) else None


def _arrivals(times: Iterable[float]) -> Description:
    """Span, mean rate, coefficient of variation of the gaps, and the busiest 10 s."""
    arrival_s = np.asarray(list(times), dtype=float)
    if len(arrival_s) < 2 or arrival_s[-1] <= arrival_s[0]:
        return {}
    gaps = np.diff(arrival_s)
    upto = np.searchsorted(arrival_s, arrival_s + 10.0, side="left")
    return {
        "span_s": float(arrival_s[-1] - arrival_s[0]),
        "rate_rps": float(1.0 / gaps.mean()),
        "gap_cv": float(gaps.std() / gaps.mean()),
        "peak_rps": float((upto - np.arange(len(arrival_s))).max() / 10.0),
    }


def _lengths(prompt_tokens: Any, output_tokens: Any) -> Description:
    return {"prompt_tokens": _spread(prompt_tokens), "output_tokens": _spread(output_tokens)}


def _spread(values: Any) -> dict[str, float | int]:
    numbers = np.asarray(values)
    p50, p95 = np.quantile(numbers, (0.5, 0.95))
    return {
        "mean": float(numbers.mean()),
        "p50": float(p50),
        "p95": float(p95),
        "max": int(numbers.max()),
    }


def _tally(column: pd.Series) -> dict[str, int]:
    return {str(key): int(count) for key, count in column.value_counts().items()}


def _slo_text(request: WorkloadRequest) -> str:
    given = [(name, getattr(request.slo, f"{name}_s")) for name in OBJECTIVES]
    return ", ".join(f"{n} {s:g} s" for n, s in given if s is not None) or "best effort"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )
