"""Rows and files as the packs have them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

CLASSES = ("chat", "code", "agent_step", "reasoning")


def pack_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row as the packs have it; every fourth is of the same class."""
    row = {
        "id": f"{number:016x}",
        "group": f"{number:012x}",
        "source": "made_up",
        "license": "MIT",
        "task": "some_task",
        "slo_class": CLASSES[number % 4],
        "model": "m",
        "turn": 1,
        "prompt_tokens": 5 + number % 7,
        "output_tokens": 10 + number,
        "prompt": f"question {number}",
        "response": f"answer {number}",
    }
    return row | changes


def write_gz(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path
