"""How the suite is shared by two workers: a package's tests stay together.

So MLflow's database is made once, a kernel is compiled once, and one engine serves all that need
it. The longest group goes first.
"""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONGEST = "training"

if "PYTEST_XDIST_WORKER" in os.environ:  # before any library counts the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def group_of(item: pytest.Item) -> str:
    if item.get_closest_marker("vllm"):
        return "engine"
    return item.path.relative_to(TESTS).parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=lambda item: group_of(item) != LONGEST)
