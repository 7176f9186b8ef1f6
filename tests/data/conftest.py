"""Fixtures: no data at hand, a small data folder, or the real one where it is set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pack_files import pack_row, write_gz

REAL_DATA = os.environ.get("LENGTHWISE_DATA")


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
