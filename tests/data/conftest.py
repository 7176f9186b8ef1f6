"""Fixtures: no data at hand, a small data folder, or the real one where it is set."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

REAL_DATA = os.environ.get("LENGTHWISE_DATA")
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


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see no data and no downloads but those they make."""
    monkeypatch.delenv("LENGTHWISE_DATA", raising=False)
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path / "home"))


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A data folder with one pack `gpt35` of 200 rows."""
    root = tmp_path / "data"
    write_gz(root / "packs" / "gpt35.jsonl.gz", [pack_row(i) for i in range(200)])
    monkeypatch.setenv("LENGTHWISE_DATA", str(root))
    return root


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not REAL_DATA:
        pytest.skip("needs LENGTHWISE_DATA")
    monkeypatch.setenv("LENGTHWISE_DATA", REAL_DATA)
    return Path(REAL_DATA)
