"""A workspace with a fresh tracking store a test, and one tiny trained predictor a session."""

import gc
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lengthwise.training.registry.connection import connect
from lengthwise.training.workspace import Workspace


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """A bench collects garbage before it starts: let it not search MLflow and torch each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A migrated MLflow database: making one takes seconds, copying it none."""
    workspace = Workspace(tmp_path_factory.mktemp("store"))
    with connect(workspace, writing=True) as mlflow:
        mlflow.MlflowClient().search_registered_models()
    return workspace.database


@pytest.fixture
def workspace(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Workspace(tmp_path / "home of mine")
    home.mlruns.mkdir(parents=True)
    shutil.copy(empty_store, home.database)
    monkeypatch.setenv("LENGTHWISE_HOME", str(home.root))
    return home


@pytest.fixture(scope="session")
def predictor_dir(tmp_path_factory) -> Path:
    from lengthwise.data.sources.synthetic.corpus import synthetic_table
    from lengthwise.data.splits import split_table
    from lengthwise.predictor.fitting.fit import fit_predictor

    parts = split_table(synthetic_table(rows=400))
    predictor = fit_predictor(parts["train"], parts["calibration"], n_estimators=30)
    directory = tmp_path_factory.mktemp("predictor") / "native"
    predictor.save(directory)
    return directory


@pytest.fixture
def run(workspace, monkeypatch):
    """Run a command in a fresh workspace; returns Click's result."""
    from typer.testing import CliRunner

    from lengthwise.predictor.fitting import fit
    from lengthwise.training.cli.app import app
    from lengthwise.training.train import worth

    # fewer trees and dots than usual: what is tested here is what surrounds them
    monkeypatch.setattr("lengthwise.training.figures.DPI", 30)
    monkeypatch.setattr(fit, "fit_predictor", partial(fit.fit_predictor, n_estimators=30))
    monkeypatch.setattr(worth, "decision_value", partial(worth.decision_value, requests=200))

    def invoke(*args, **kwargs):
        return CliRunner().invoke(app, [str(arg) for arg in args], **kwargs)

    return invoke


@pytest.fixture
def refuses(run):
    """Run a command that must fail with one line on stderr; returns the line."""

    def invoke(*args):
        result = run(*args)
        assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
        (line,) = result.stderr.splitlines()
        assert line.startswith("lengthwise: error: ")
        return line

    return invoke


@pytest.fixture
def rng():
    return np.random.default_rng(0)
