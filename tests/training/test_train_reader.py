"""`train --reader`: what is logged, registered, checked by the doctor, and refused."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_reader import write_tiny_reader

from lengthwise.data.errors import InputError
from lengthwise.predictor.features import reader_states
from lengthwise.predictor.features.reader_columns import CausalReader
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.serving.api.predicting.prediction import load_predictor
from lengthwise.scheduler.serving.api.predicting.reader_desk import _loaded, _read
from lengthwise.scheduler.serving.wire.answer_length import rounded
from lengthwise.training.cli.app import app
from lengthwise.training.doctor.checks import _reader
from lengthwise.training.registry.models import resolve_predictor
from lengthwise.training.train.pipeline import TrainConfig, train


@pytest.fixture
def reader(tmp_path):
    folder = tmp_path / "reader"
    folder.mkdir()
    write_tiny_reader(folder)
    return folder


def test_a_version_names_its_reader_and_the_doctor_looks_for_it(workspace, reader, monkeypatch):
    defaults = list(CausalReader.__init__.__defaults__)
    defaults[defaults.index(CausalReader().least_gain)] = -10.0  # every class is read
    monkeypatch.setattr(CausalReader.__init__, "__defaults__", tuple(defaults))
    result = train(
        TrainConfig("synthetic", limit=600, causal_reader=str(reader), register=True),
        workspace=workspace,
    )
    said = result.to_json()["causal_reader"]
    assert said["model"] == str(reader)
    assert said["classes"]
    found = resolve_predictor(workspace=workspace)
    assert LengthPredictor.load(found.directory).causal is not None
    assert [check.status for check in _reader(found)] == ["ok"]
    quick, _ = load_predictor(str(found.directory))  # as a server does
    assert quick.causal is None
    asked = [SimpleNamespace(text="Write a haiku about rain.", slo_class=said["classes"][0])]
    assert _loaded(quick.full) > 0.0
    (row,) = _read(quick.full, asked).rows
    assert row == rounded(quick.full.predict([asked[0].text], [asked[0].slo_class]).quantiles[0])
    assert row != rounded(quick.predict([asked[0].text], [asked[0].slo_class]).quantiles[0])
    reader_states._loaded.cache_clear()
    shutil.rmtree(reader)
    (check,) = _reader(found)
    assert (check.name, check.status) == ("reader", "warn")
    assert "neither 'smollm2'" in check.detail


def test_a_reader_that_cannot_be_had_is_refused_before_anything_is_read(workspace):
    with pytest.raises(InputError, match="neither 'smollm2', nor a folder"):
        train(TrainConfig("no such pack", causal_reader="no/such"), workspace=workspace)


def test_the_command_line_refuses_a_reader_where_there_are_no_prompts(workspace, tmp_path):
    done = CliRunner().invoke(
        app, ["train", "--from-log", str(tmp_path), "--stream", "--reader", "smollm2"]
    )
    assert done.exit_code != 0
    assert "--reader smollm2: needs the prompts" in f"{done.exception} {done.output}"
