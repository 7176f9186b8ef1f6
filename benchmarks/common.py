"""What the predictor benchmarks share: arguments, tables, and the last line of output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

PACKS = ("gpt35", "mixtral_8x7b", "llama31_8b")


def parser(description: str | None, packs: Sequence[str] = PACKS) -> argparse.ArgumentParser:
    """Arguments every benchmark takes."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--packs", nargs="+", default=list(packs))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--jobs", type=int, default=1, help="LightGBM threads")
    return arguments


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds; NaN half with one seed."""
    a = np.asarray(values, np.float64)
    if a.size < 2:
        return float(a.mean()), float("nan")
    half = student.ppf(0.975, a.size - 1) * a.std(ddof=1) / np.sqrt(a.size)
    return float(a.mean()), float(half)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
    print()


def finish(name: str, result: Any) -> None:
    """The machine-readable last line."""
    print(json.dumps({"benchmark": name, "result": result}, default=float))


def note(text: str) -> None:
    """Progress, apart from the output."""
    print(text, file=sys.stderr, flush=True)
