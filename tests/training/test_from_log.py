"""Training from a server's log that holds features and lengths, but no text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import RequestLogWriter
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.predictor.model import LengthPredictor
from lengthwise.training.registry import models as registry
from lengthwise.training.train.pipeline import TrainConfig, train


@pytest.fixture
def log(predictor_dir, tmp_path):
    """600 finished requests whose answers are three times as long as the corpus says."""
    predictor = LengthPredictor.load(predictor_dir)
    table = synthetic_table(rows=600, seed=5)
    classes = table["slo_class"].tolist()
    features = predictor.features(table["prompt"].tolist(), classes)
    folder = tmp_path / "log"
    writer = RequestLogWriter(folder)
    for i, (name, tokens) in enumerate(zip(classes, table["output_tokens"], strict=True)):
        writer.write(
            {
                "request_id": f"r{i}",
                "status": "finished",
                "slo_class": name,
                "prompt_tokens": int(table["prompt_tokens"][i]),
                "output_tokens": 3 * int(tokens),
                "features": features[i].tolist(),
                "feature_contract": predictor.feature_contract,
                "predictor": "models:/output-length/1",
            }
        )
    writer.close()
    return folder


def test_a_new_version_learns_lengths_from_features_alone(workspace, predictor_dir, log):
    registry.register(predictor_dir, workspace=workspace)
    result = train(TrainConfig(str(log), register=True), workspace=workspace)
    assert result.model_uri == "models:/output-length/2"
    old, new = LengthPredictor.load(predictor_dir), LengthPredictor.load(result.directory)
    assert new.feature_contract == old.feature_contract
    prompts = synthetic_table(rows=200, seed=6)["prompt"].tolist()
    ratio = np.median(new.predict(prompts).median() / old.predict(prompts).median())
    assert 2.2 < ratio < 3.8
    assert result.metrics["mae"] < result.metrics["baselines"]["class_quantiles"]["mae"]
    assert result.metrics["tau"] > 0.3
    assert "lambdarank" not in result.metrics["baselines"]


def test_odd_rows_are_left_out_and_named(workspace, predictor_dir, log):
    registry.register(predictor_dir, workspace=workspace)
    (file,) = log.glob("requests-*.jsonl")
    lines = file.read_text().splitlines()
    row = json.loads(lines[0])
    narrow = json.dumps(row | {"features": row["features"][:-1]})
    text = json.dumps(row | {"features": None, "prompt": "one with text"})
    file.write_text("\n".join([*lines[:300], narrow, text, '{"request_id": 3}', *lines[300:], ""]))
    for stream in (False, True):
        result = train(TrainConfig(str(log), stream=stream), workspace=workspace)
        assert sum(result.rows.values()) == 600
        assert sum(part["rows"] for part in result.unused["left_out"]) == 2
        (entry,) = result.unused["skipped"]
        assert (entry["reason"], entry["rows"]) == ("request_id must be text", 1)


def test_an_encoder_needs_text(workspace, predictor_dir, log):
    registry.register(predictor_dir, workspace=workspace)
    with pytest.raises(InputError, match="bert needs prompt text"):
        train(TrainConfig(str(log), estimator="bert"), workspace=workspace)


def test_a_log_larger_than_memory_is_read_in_pieces(workspace, predictor_dir, log):
    registry.register(predictor_dir, workspace=workspace)
    result = train(TrainConfig(str(log), stream=True), workspace=workspace)
    assert sum(result.rows.values()) == 600
    assert result.metrics["tau"] > 0.3
    assert LengthPredictor.load(result.directory).card["source_label"] == "log"
