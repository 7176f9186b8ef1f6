"""Published records of arrivals and lengths, without text: one short reader each."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.data.errors import InputError, shown
from lengthwise.data.lines import read_json_lines
from lengthwise.data.locations import data_root, downloads_root, trace_path


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests of a recorded service, all (n,); `arrival_s` sorted, None where none is recorded.

    `prefix_blocks`: per request the ids of its 512-token prefix blocks (Mooncake only).
    """

    name: str
    arrival_s: FloatArray | None
    prompt_tokens: IntArray
    output_tokens: IntArray
    prefix_blocks: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt_tokens)


@dataclass(frozen=True, slots=True)
class ServegenClient:
    """One production client of ServeGen: arrival windows of 600 s and length histograms of 6 h.

    `windows`: columns start_s, rate_rps, cv (of inter-arrivals; 0 where the rate is 0).
    `lengths`: window start in s -> field -> {value: probability}; `{}` where nothing arrived.
    """

    group: str
    chunk: int
    windows: pd.DataFrame
    lengths: dict[int, dict[str, dict[float, float]]]


def read_azure(path: str | Path) -> Trace:
    """Azure 2023: `t_s,in_tok,out_tok`, or as published `TIMESTAMP,ContextTokens,GeneratedTokens`.

    Arrivals are seconds on the file's own clock (of the day, as published), so that the two
    files of one service can be merged.
    """
    frame = _csv(
        path, [("t_s", "TIMESTAMP"), ("in_tok", "ContextTokens"), ("out_tok", "GeneratedTokens")]
    )
    if not pd.api.types.is_numeric_dtype(frame["t_s"]):
        stamps = pd.to_datetime(frame["t_s"], errors="coerce")
        if stamps.isna().any():
            row = int(np.argmax(stamps.isna()))
            raise InputError(
                f"{path}: row {row}: TIMESTAMP must be a time, got {shown(frame['t_s'][row])}"
            )
        frame["t_s"] = (stamps - stamps.iloc[0].normalize()).dt.total_seconds()
    return _trace(path, frame, "in_tok", "out_tok", frame["t_s"].to_numpy(dtype=float))


def azure_times() -> FloatArray:
    """Arrivals (s) of both Azure 2023 services on their common clock: a bursty code service over
    a steady chat service. From $LENGTHWISE_DATA/traces, or from the fetched sets."""
    files = [_azure_file(name) for name in ("azure2023_code", "azure2023_conv")]
    arrivals = [trace.arrival_s for trace in map(read_azure, files) if trace.arrival_s is not None]
    return np.sort(np.concatenate(arrivals))


def read_mooncake(path: str | Path) -> Trace:
    """Mooncake: lines of `timestamp` (ms), `input_length`, `output_length`, `hash_ids`."""
    rows = []
    for number, row in read_json_lines(path):
        for name in ("timestamp", "input_length", "output_length"):
            value = row.get(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(
                    f"{path}:{number}: {name} must be a whole number, got {shown(value)}"
                )
        blocks = row.get("hash_ids", [])
        if not (isinstance(blocks, list) and all(isinstance(block, int) for block in blocks)):
            raise InputError(
                f"{path}:{number}: hash_ids must be whole numbers, got {shown(blocks)}"
            )
        rows.append((row["timestamp"], row["input_length"], row["output_length"], tuple(blocks)))
    if not rows:
        raise InputError(f"{path}: a trace needs at least one row, got none")
    frame = pd.DataFrame([row[:3] for row in rows], columns=["ms", "input", "output"])
    blocks = tuple(row[3] for row in rows)
    arrival_s = frame["ms"].to_numpy(dtype=float) / 1000.0
    return _trace(path, frame, "input", "output", arrival_s, blocks)


def read_arxiv(path: str | Path) -> Trace:
    """arXiv summarisation lengths (vidur); the answer is the human abstract. No arrivals."""
    frame = _csv(path, [("num_prefill_tokens",), ("num_decode_tokens",)])
    return _trace(path, frame, "num_prefill_tokens", "num_decode_tokens", None)


def read_vicuna(path: str | Path) -> pd.DataFrame:
    """Vicuna-13B on LMSYS-Chat: `output_tokens`, `predicted_class` (0-4), `latency_s`.

    The class was given by a published BERT predictor: a realistic predictor error to simulate.
    """
    frame = _csv(path, [("output_token_length",), ("predicted_length",), ("latency",)])
    output = _whole(path, frame, "output_token_length")
    return pd.DataFrame(
        {
            "output_tokens": output,
            "predicted_class": _whole(path, frame, "predicted_length"),
            "latency_s": frame["latency"].astype(float),
        }
    )


def read_servegen(path: str | Path) -> list[ServegenClient]:
    """All clients of the archive (arXiv 2505.09999), by group and chunk."""
    windows: dict[tuple[str, int], pd.DataFrame] = {}
    lengths: dict[tuple[str, int], dict[int, dict[str, dict[float, float]]]] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                parts = Path(member.name).name.split("-")
                content = archive.extractfile(member) if len(parts) == 3 else None
                if content is None or not parts[1].isdigit():
                    continue
                key = (Path(member.name).parent.as_posix(), int(parts[1]))
                if parts[2] == "trace.csv":
                    frame = pd.read_csv(content, header=None, usecols=[0, 1, 2])
                    windows[key] = frame.set_axis(["start_s", "rate_rps", "cv"], axis=1).astype(
                        float
                    )
                elif parts[2] == "dataset.json":
                    lengths[key] = _histograms(json.load(content), f"{path}: {member.name}")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable ServeGen archive: {error}") from error
    if not windows:
        raise InputError(f"{path}: holds no client trace (chunk-N-trace.csv)")
    return [ServegenClient(*key, windows[key], lengths.get(key, {})) for key in sorted(windows)]


READERS = {"azure": read_azure, "mooncake": read_mooncake, "arxiv": read_arxiv}
"""Readers that give a Trace, by the name the catalogue uses."""


def reader_name(path: str | Path) -> str | None:
    """Which trace reader fits a file, told from its name; None when it is no known trace."""
    name = Path(path).name.lower()
    known = ("azure", "mooncake", "servegen", "arxiv", "vicuna")
    return next((key for key in known if key in name), None)


def _azure_file(name: str) -> Path:
    from lengthwise.data.sources.fetch import fetched_file

    fetched = fetched_file(name, downloads_root())
    root = data_root()
    if fetched and not (root and (root / "traces" / f"{name}.csv.gz").is_file()):
        return fetched
    try:
        return trace_path(f"{name}.csv.gz")
    except InputError as error:
        raise InputError(f"{error}; or run: lengthwise data fetch {name}") from error


def _csv(path: str | Path, columns: list[tuple[str, ...]]) -> pd.DataFrame:
    """The columns of a CSV under their first name; each may have others in the file."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        frame = pd.read_csv(path)
    except (OSError, EOFError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: not a readable CSV: {error}") from error
    names = {}
    for aliases in columns:
        found = next((alias for alias in aliases if alias in frame.columns), None)
        if found is None:
            raise InputError(
                f"{path}: needs a column {' or '.join(aliases)}, has {list(frame.columns)}"
            )
        names[found] = aliases[0]
    if frame.empty:
        raise InputError(f"{path}: a trace needs at least one row, got none")
    return frame[list(names)].rename(columns=names)


def _trace(
    path: str | Path,
    frame: pd.DataFrame,
    prompt: str,
    output: str,
    arrival_s: FloatArray | None,
    blocks: tuple[tuple[int, ...], ...] | None = None,
) -> Trace:
    if arrival_s is not None:
        bad = ~np.isfinite(arrival_s) | (arrival_s < 0)
        bad[1:] |= np.diff(arrival_s) < 0
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"{path}: row {row}: arrivals must be finite, >= 0 and sorted, got {arrival_s[row]}"
            )
    name = Path(path).name.split(".")[0]
    prompt_tokens, output_tokens = (_whole(path, frame, column) for column in (prompt, output))
    return Trace(name, arrival_s, prompt_tokens, output_tokens, blocks)


def _whole(path: str | Path, frame: pd.DataFrame, column: str) -> IntArray:
    numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=float)
    bad = ~np.isfinite(numbers) | (numbers < 0) | (numbers != np.floor(numbers))
    if bad.any():
        row = int(np.argmax(bad))
        value = shown(frame[column].iloc[row])
        raise InputError(f"{path}: row {row}: {column} must be a whole number >= 0, got {value}")
    return numbers.astype(np.int64)


def _histograms(document: Any, where: str) -> dict[int, dict[str, dict[float, float]]]:
    try:
        return {
            int(start): {field: _histogram(text) for field, text in fields.items()}
            for start, fields in document.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: must map window starts to histograms: {error}") from error


def _histogram(text: str) -> dict[float, float]:
    """A dict as Python prints it, `"{7: 0.25, 9: 0.75}"`, keys tokens or ratios."""
    # ast.literal_eval takes 15 s on the archive, this 2 s
    pairs = (pair.split(":") for pair in text.strip().strip("{}").split(",") if pair.strip())
    return {float(value): float(share) for value, share in pairs}
