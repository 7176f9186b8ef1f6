"""Help answers at once: nothing heavy is imported for it."""

import resource
import subprocess
import sys

import pytest

HEAVY = (
    "numpy", "pandas", "mlflow", "lightgbm", "sklearn", "numba", "torch", "vllm", "rich",
    "scipy", "matplotlib", "ray", "pyarrow", "sqlalchemy", "requests", "transformers",
)  # fmt: skip


def test_help_imports_nothing_heavy():
    code = (
        f"import sys, lengthwise.training.cli.app; print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [(), ("serve",), ("train",), ("simulate",), ("register",), ("bench",), ("data", "describe")],
)
def test_a_whole_help_loads_neither_what_is_heavy_nor_what_it_explains(command):
    code = """
import contextlib, io, runpy, sys
sys.argv[0] = "lengthwise"
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    runpy.run_module("lengthwise", run_name="__main__")
print(*sys.modules)
"""
    line = [sys.executable, "-c", code, *command, "--help"]
    loaded = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert "lengthwise.training.cli.serving.serve" in loaded
    ours = ("scheduler", "predictor", "data.sources", "training.bench", "training.train",
            "training.registry.models")  # fmt: skip
    unwanted = {*HEAVY, "asyncio", "sqlite3", *(f"lengthwise.{part}" for part in ours)}
    assert unwanted & set(loaded) == set()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ((), ("train", "register", "predict", "compare", "serve", "doctor", "data", "bench")),
        (("serve",), ("--policy", "--predictor", "--slo-table", "--request-log")),
    ],
)
def test_help_answers_at_once(command, named):
    """In processor time, for the machine may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "lengthwise", *command, "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4
    for name in named:
        assert f" {name} " in done.stdout
