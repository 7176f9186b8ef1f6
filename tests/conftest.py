"""Two workers, one thread each; whatever starts an engine runs on one of them."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before any library counts the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.xdist_group("engine"))
