"""A served predictor is data: loading one runs nothing that its directory could name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pickle_guard import Unpickled, no_unpickling

from lengthwise.data.errors import InputError
from lengthwise.predictor.model import LengthPredictor

LOAD = """
import sys
from pickle_guard import no_unpickling
with no_unpickling():
    from lengthwise.predictor.model import LengthPredictor
    predictor = LengthPredictor.load(sys.argv[1])
    row = predictor.predict(["List 5 facts about bees.", ""], ["chat", None]).quantiles
print(row.shape)
"""


class Payload:
    """Makes a directory when unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture
def artifact(predictor, tmp_path):
    predictor.save(tmp_path / "artifact")
    return tmp_path / "artifact"


def test_a_fresh_process_loads_and_predicts_without_unpickling(artifact):
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1] / "src")])
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(artifact)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "(2, 12)"


@pytest.mark.parametrize("load", [pickle.loads, "pickle.loads"])
def test_the_guard_notices(load, tmp_path):
    """By the name in the module, and by a reference taken before the guard stood."""
    data = pickle.dumps(Payload(tmp_path / "made"))
    with no_unpickling(), pytest.raises(Unpickled):
        (pickle.loads if isinstance(load, str) else load)(data)
    assert not (tmp_path / "made").exists()


def test_pickled_arrays_are_refused_and_not_run(artifact, tmp_path):
    with np.load(artifact / "features.npz") as file:
        arrays = dict(file)
    arrays["weights"] = np.array([Payload(tmp_path / "made")], dtype=object)
    np.savez(artifact / "features.npz", **arrays)
    with no_unpickling(), pytest.raises(InputError, match=r"features\.npz: cannot be read"):
        LengthPredictor.load(artifact)
    assert not (tmp_path / "made").exists()
