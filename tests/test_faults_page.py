"""docs/faults.md names tests that exist, for all twenty-two kinds."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and "`tests/" in line
]


def test_every_kind_has_rows():
    kinds = [int(row[0].split()[0].lstrip("| ")) for row in ROWS if row[0][:1].isdigit()]
    assert kinds == list(range(1, 23))


def test_every_row_is_held_by_tests_that_exist():
    for row in ROWS:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", row[-1])
        assert named, row
        for file, test in named:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test}"
