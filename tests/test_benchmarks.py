"""The benchmarks as a whole: an index that is complete, one convention of output."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import finish, interval, print_table

FOLDER = Path(__file__).parents[1] / "benchmarks"
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")
NAMED = re.findall(r"python -m (benchmarks(?:\.\w+)+)", INDEX)
MODULES = {
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts): path
    for path in FOLDER.glob("*/**/*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
}
RUNNABLE = sorted(name.removesuffix(".__main__") for name in MODULES)


def test_the_index_names_each_benchmark_once():
    assert sorted(NAMED) == RUNNABLE


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_benchmark_says_how_it_is_run_and_imports_what_there_is(name):
    module = importlib.import_module(name if name in MODULES else f"{name}.__main__")
    assert callable(module.main)
    assert f"python -m {name}" in module.__doc__


def test_a_table_then_one_document_as_the_last_line(capsys):
    print_table(["a", "b"], [[1, "x"], [2, "y"]])
    finish("some", {"mean": (np.float64(0.5), float("nan")), 2.0: [np.int64(3), None]})
    *table, last = capsys.readouterr().out.splitlines()
    assert table == ["| a | b |", "|---|---|", "| 1 | x |", "| 2 | y |", ""]
    assert json.loads(last) == {
        "benchmark": "some",
        "result": {"mean": [0.5, None], "2.0": [3.0, None]},
    }


def test_the_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)  # t of 2 degrees of freedom
    assert np.isnan(interval([1.0])[1])
