"""The Azure 2023 traces: when requests came to two real services, and how long they were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.data.errors import InputError, shown
from lengthwise.data.locations import downloads_root, trace_path

# a column's name here, and as published
_COLUMNS = {"t_s": "TIMESTAMP", "in_tok": "ContextTokens", "out_tok": "GeneratedTokens"}


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests of a recorded service, all (n,); `arrival_s` is sorted."""

    name: str
    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray

    def __len__(self) -> int:
        return len(self.prompt_tokens)


def read_azure(path: str | Path) -> Trace:
    """Azure 2023: `t_s,in_tok,out_tok`, or as published `TIMESTAMP,ContextTokens,GeneratedTokens`.

    Arrivals are seconds on the file's own clock (of the day, as published), so that the two
    files of one service can be merged. InputError for anything else, with the row.
    """
    frame = _csv(path)
    if not pd.api.types.is_numeric_dtype(frame["t_s"]):
        stamps = pd.to_datetime(frame["t_s"], errors="coerce")
        if stamps.isna().any():
            row = int(np.argmax(stamps.isna()))
            raise InputError(
                f"{path}: row {row}: TIMESTAMP must be a time, got {shown(frame['t_s'][row])}"
            )
        frame["t_s"] = (stamps - stamps.iloc[0].normalize()).dt.total_seconds()
    arrival_s = frame["t_s"].to_numpy(dtype=float)
    bad = ~np.isfinite(arrival_s) | (arrival_s < 0)
    bad[1:] |= np.diff(arrival_s) < 0
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{path}: row {row}: arrivals must be finite, >= 0 and sorted, got {arrival_s[row]}"
        )
    prompt_tokens, output_tokens = (_whole(path, frame, name) for name in ("in_tok", "out_tok"))
    return Trace(Path(path).name.split(".")[0], arrival_s, prompt_tokens, output_tokens)


def azure_times() -> FloatArray:
    """Arrivals (s) of both Azure 2023 services on their common clock: a bursty code service over
    a steady chat service. From $LENGTHWISE_DATA/traces, or from the fetched sets."""
    files = [azure_file(name) for name in ("azure2023_code", "azure2023_conv")]
    return np.sort(np.concatenate([read_azure(file).arrival_s for file in files]))


def azure_file(name: str) -> Path:
    """The file of one service; InputError says how to fetch it where it is not here."""
    from lengthwise.data.sources.fetch import fetched_file

    try:
        return trace_path(f"{name}.csv.gz")
    except InputError as error:
        fetched = fetched_file(name, downloads_root())
        if fetched:
            return fetched
        raise InputError(f"{error}; or run: lengthwise data fetch {name}") from error


def _csv(path: str | Path) -> pd.DataFrame:
    """The columns of the file under their names here."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        frame = pd.read_csv(path)
    except (OSError, EOFError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: not a readable CSV: {error}") from error
    names = {}
    for name, published in _COLUMNS.items():
        found = next((known for known in (name, published) if known in frame.columns), None)
        if found is None:
            raise InputError(
                f"{path}: needs a column {name} or {published}, has {list(frame.columns)}"
            )
        names[found] = name
    if frame.empty:
        raise InputError(f"{path}: a trace needs at least one row, got none")
    return frame[list(names)].rename(columns=names)


def _whole(path: str | Path, frame: pd.DataFrame, column: str) -> IntArray:
    numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=float)
    bad = ~np.isfinite(numbers) | (numbers < 0) | (numbers != np.floor(numbers))
    if bad.any():
        row = int(np.argmax(bad))
        value = shown(frame[column].iloc[row])
        raise InputError(f"{path}: row {row}: {column} must be a whole number >= 0, got {value}")
    return numbers.astype(np.int64)
