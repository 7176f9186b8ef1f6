"""What the benchmarks share: arguments, training, and how they end: a table, then one JSON line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from scipy.special import stdtrit

PACKS = ("gpt35", "mixtral_8x7b", "llama31_8b")


def parser(description: str | None, packs: Sequence[str] = PACKS) -> argparse.ArgumentParser:
    """The arguments of every benchmark of a predictor."""
    arguments = plain_parser(description)
    arguments.add_argument("--packs", nargs="+", default=list(packs))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--jobs", type=int, default=1, help="LightGBM threads")
    return arguments


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """No arguments yet; the help is the module's own, as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def fitted(pack: str, seed: int, jobs: int, **options: Any) -> tuple[Mapping[str, Any], Any]:
    """A pack's sides, split by question, and a predictor trained on them."""
    from lengthwise.data.sources.load import load_table
    from lengthwise.data.splits import split_table
    from lengthwise.predictor.fitting.fit import fit_predictor

    parts = split_table(load_table(pack), seed=seed)
    predictor = fit_predictor(
        parts["train"], parts["calibration"], seed=seed, n_jobs=jobs, **options
    )
    return parts, predictor


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval (Student's t) of independent values; nan half for one."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    half = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(half)


def percentiles_ms(taken_s: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile of times."""
    p50, p99 = np.quantile(1e3 * np.asarray(taken_s), (0.5, 0.99))
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


@contextmanager
def processes(jobs: int) -> Iterator[Any]:
    """So many workers, started anew: the predictor's library holds threads a fork would lose."""
    with get_context("spawn").Pool(jobs) as pool:
        yield pool


def played(play: Callable[[Any], Any], jobs: Sequence[Any], workers: int, out: Path) -> list[Any]:
    """What `play` makes of every job, in their order; each a line of `out` as it is done."""
    lines = []
    with processes(workers) as pool, out.open("w", encoding="utf-8") as file:
        done = pool.imap(play, jobs)
        for line in track(done, "runs", len(jobs), console=Console(stderr=True)):
            lines.append(line)
            print(json.dumps(line), file=file, flush=True)
    return lines


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Markdown lines."""
    body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *body]


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table."""
    print("\n".join(table(header, rows)), end="\n\n", flush=True)


def finish(name: str, result: Any) -> None:
    """The machine-readable last line; what is not a number is null."""
    document = {"benchmark": name, "result": _plain(result)}
    print(json.dumps(document, allow_nan=False, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.number):
        return float(value) if np.isfinite(value) else None
    return value


def note(text: str) -> None:
    """Progress, apart from the output."""
    print(text, file=sys.stderr, flush=True)
