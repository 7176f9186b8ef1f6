"""What is in a source: rows, lengths, licences, splits, as plain figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.data.arena.traces import Trace, azure_file, read_azure
from lengthwise.data.errors import InputError
from lengthwise.data.lines import read_json_lines
from lengthwise.data.request_log import answered, log_to_table, read_request_log
from lengthwise.data.request_log.errors_of import prediction_errors
from lengthwise.data.skipped import skipped_line
from lengthwise.data.slo import OBJECTIVES
from lengthwise.data.sources.catalogue import CATALOGUE
from lengthwise.data.sources.load import load_table
from lengthwise.data.sources.rows.delimited import is_table
from lengthwise.data.splits import SPLITS, split_of
from lengthwise.data.table import PromptTable
from lengthwise.data.workload import WorkloadRequest, read_workload

Description = dict[str, Any]


def describe(spec: str) -> Description:
    """Figures of anything `load_table` takes, a workload file, or a trace; keys by `kind`.

    "prompts": rows, by (rows per source, task and class), licenses, censored_share, groups,
    distinct_prompts, splits, duplicates_across_splits, unused (`unused_of`). "request_log": those
    and statuses, met_share, torn_lines, predictions (`prediction_errors`), unpredicted_rows.
    "workload", "trace": arrivals (span_s, rate_rps, gap_cv, peak_rps). Lengths are {mean, p50,
    p95, max} tokens.
    """
    if spec in CATALOGUE and CATALOGUE[spec].kind == "trace":
        return {"spec": spec, **_of_trace(read_azure(azure_file(spec)))}
    path = Path(spec)
    if path.is_dir():
        return {"spec": spec, **_of_log(path)}
    if path.is_file() and (row := _first_row(path)) is not None:
        if "arrival_s" in row:
            return {"spec": spec, **_of_workload(read_workload(path))}
        if "request_id" in row and "status" in row:
            return {"spec": spec, **_of_log(path)}
    if ".csv" in path.suffixes and path.is_file() and not is_table(path):
        return {"spec": spec, **_of_trace(read_azure(path))}
    return {"spec": spec, **_of_table(load_table(spec))}


def unused_of(table: pd.DataFrame) -> Description:
    """What a reader did not use of its source (`table.note_reading`), only what there was of it.

    skipped_rows with skipped [{reason, rows, first}], skipped_turns, left_out [{reason, rows}],
    torn_lines, unread_files, unread_bytes.
    """
    names = ("skipped_rows", "skipped", "skipped_turns", "torn_lines", "unread_files")
    found = {name: table.attrs[name] for name in names if table.attrs.get(name)}
    if rows := table.attrs.get("left_out_rows"):
        found["left_out"] = [
            {"reason": "more than one training holds or was asked for", "rows": rows}
        ]
    if size := table.attrs.get("unread_bytes"):
        found["unread_bytes"] = size
    return found


def unused_lines(unused: Mapping[str, Any]) -> list[str]:
    """The same as lines for people."""
    lines = [f"Skipped {skipped_line(entry)}" for entry in unused.get("skipped", ())]
    if turns := unused.get("skipped_turns"):
        lines.append(f"Skipped {turns:,} blank turns")
    for entry in unused.get("left_out", ()):
        lines.append(f"Left out {entry['rows']:,} rows: {entry['reason']}")
    if torn := unused.get("torn_lines"):
        lines.append(f"Skipped {torn:,} lines that were cut off")
    if files := unused.get("unread_files"):
        lines.append(f"Not read: {', '.join(files)}")
    if size := unused.get("unread_bytes"):
        lines.append(f"Not read: the older {size / 1e6:,.1f} MB of the log")
    return lines


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
        "unused": unused_of(table),
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
    frame = read_request_log(folder, compact=True)
    judged = frame["met"].dropna()
    outcome = {
        "kind": "request_log",
        "files": frame.attrs["files"],
        "logged_rows": len(frame),
        "torn_lines": frame.attrs["torn_lines"],
        "unpredicted_rows": int((answered(frame) & frame["predicted_tokens"].isna()).sum()),
        "unused": unused_of(frame),
        "statuses": _tally(frame["status"]),
        "met_share": float(judged.astype(bool).mean()) if len(judged) else None,
        **_arrivals(frame["arrival_unix_s"].dropna().sort_values()),
    }
    if not frame["status"].isin(("finished", "length")).any():
        return outcome
    outcome["predictions"] = prediction_errors(frame)
    if not answered(frame).any():
        return outcome
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
        **_arrivals(trace.arrival_s),
        **_lengths(trace.prompt_tokens, trace.output_tokens),
    }


def _first_row(path: Path) -> dict[str, Any] | None:
    """The first line's object, where a file holds JSON lines."""
    try:
        return next(read_json_lines(path), (0, None))[1]
    except InputError:
        return None


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
