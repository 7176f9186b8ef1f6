"""The predictor that comes with the package: whole, small, and the first version where none is."""

from __future__ import annotations

import zipfile
from importlib.resources import files

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.predictor.distribution import DEFAULT_LEVELS
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.serving.priors import load_priors
from lengthwise.training.cli.serving.serve_inputs import find_predictor
from lengthwise.training.registry.models import register, resolve_predictor
from lengthwise.training.registry.shipped import ARCHIVE, register_shipped, unpack


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return LengthPredictor.load(unpack(tmp_path_factory.mktemp("shipped")))


def test_it_is_small_and_holds_no_words():
    archive = files("lengthwise.predictor") / ARCHIVE
    with zipfile.ZipFile(str(archive)) as file:
        assert sum(entry.compress_size for entry in file.infolist()) < 2_500_000
        names = {entry.filename for entry in file.infolist()}
        assert "vocabulary" not in file.read("features.json").decode()
    assert {"card.json", "features.npz", "calibration.json"} <= names


def test_it_tells_long_from_short(shipped):
    said = shipped.predict(
        ["What is the capital of France? Answer in one word.",
         "Write a detailed essay of 1500 words on the causes of the French revolution."],
        ["chat", "chat"],
    )  # fmt: skip
    short, long = said.median()
    assert long > 2 * short
    assert shipped.levels == DEFAULT_LEVELS


def test_a_server_of_any_version_can_take_over_from_it(tmp_path):
    """A live file's predictor must have the levels that the server started with."""
    levels = load_priors(unpack(tmp_path)).levels
    assert np.array_equal(levels, np.array(DEFAULT_LEVELS))


def test_a_workspace_without_versions_begins_with_it(workspace):
    said = []
    found = find_predictor("models:/output-length@champion", workspace, said.append)
    assert found.label == "models:/output-length/1"
    assert "comes with the package" in said[0]
    again = find_predictor("models:/output-length@champion", workspace, said.append)
    assert again.label == found.label
    assert len(said) == 1


def test_where_there_is_a_version_it_is_not_registered(workspace, predictor_dir):
    register(predictor_dir, alias="shadow", workspace=workspace)
    assert register_shipped(workspace) is None
    with pytest.raises(InputError, match="--predictor none"):
        find_predictor("models:/output-length@champion", workspace, print)


def test_only_the_champion_is_made_up_for(workspace):
    with pytest.raises(InputError, match="--predictor none"):
        find_predictor("models:/output-length/1", workspace, print)
    with pytest.raises(InputError):
        resolve_predictor("models:/output-length@champion", workspace=workspace)


def test_a_broken_store_is_told_and_nothing_is_made(workspace):
    workspace.mlruns.mkdir(exist_ok=True)
    workspace.database.write_bytes(b"not a database")
    with pytest.raises(InputError, match="is not a SQLite database"):
        find_predictor("models:/output-length@champion", workspace, print)
    assert workspace.database.read_bytes() == b"not a database"
