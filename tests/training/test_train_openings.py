"""`train --openings`: what is logged and said, and what it is refused with."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.serving.api.predicting.prediction import load_predictor
from lengthwise.training.cli.app import app
from lengthwise.training.train import pipeline
from lengthwise.training.train.pipeline import TrainConfig, train


def with_answers(*args, **kwargs):
    table = synthetic_table(1200, seed=5)
    table["response"] = [" ".join(["word"] * n) for n in table["output_tokens"]]
    return table


def test_a_version_says_what_its_openings_were_learned_from(workspace, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "load_table", with_answers)
    result = train(TrainConfig("synthetic", openings=True), workspace=workspace)
    said = result.to_json()["openings"]
    assert said["after"]["16"]["rows"] > said["after"]["48"]["rows"] >= 300
    assert said["without_text"] == 0
    assert LengthPredictor.load(result.directory).opening_tokens == (16, 48)
    assert load_predictor(str(result.directory))[0].opening_tokens == (16, 48)
    pipeline.print_result(result)
    assert "Openings of answers learned from" in capsys.readouterr().out


def test_answers_without_text_are_refused_by_name(workspace):
    with pytest.raises(InputError, match="openings are learned from answers"):
        train(TrainConfig("synthetic", limit=600, openings=True), workspace=workspace)


@pytest.mark.parametrize(
    "given", [["--estimator", "lightgbm_student"], ["--reader", "smollm2"], ["--from-log", "."]]
)
def test_the_command_line_refuses_what_it_does_not_go_with(given):
    done = CliRunner().invoke(app, ["train", "--openings", *given])
    assert done.exit_code != 0
    assert "--openings goes with lightgbm" in f"{done.exception} {done.output}"
