"""How two workers share the suite: what needs MLflow's database stays together, and starts first.

Making the database takes seconds, so it is made once; an engine is started once for all its tests.
The rest goes to whoever is free.
"""

import os

import pytest

STORE = {f"test_{name}" for name in ("attainment", "bench_cli", "cli", "doctor", "from_log")}
STORE |= {"test_promote", "test_registry", "test_tracking_store"}

if "PYTEST_XDIST_WORKER" in os.environ:  # before any library counts the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.xdist_group("engine"))
        elif item.path.stem in STORE:
            item.add_marker(pytest.mark.xdist_group("store"))
    items.sort(key=lambda item: item.path.stem not in STORE)
