"""The commands about data and predictors: what they print, and what they refuse in one line."""

import gzip
import json
import shutil
import socket
import time
from importlib.metadata import version

import pytest


def test_version(run):
    assert run("--version").stdout.strip() == f"lengthwise {version('lengthwise')}"


def test_train_register_predict_compare(run, workspace, tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    assert run("data", "synthesize", "--output", rows, "--rows", 400).exit_code == 0
    odd = tmp_path / "odd.jsonl"
    odd.write_text(rows.read_text() + '{"prompt": "p", "output": 4}\n')
    trained = run("train", "--input", odd, "--register", "--json")
    assert trained.exit_code == 0, trained.output
    document = json.loads(trained.stdout.splitlines()[-1])
    (entry,) = document["unused"]["skipped"]
    assert entry["first"] == f"{odd}:401: output must be text, got 4"
    described = run("data", "describe", odd)
    assert f"Skipped 1 row: output must be text; first: {odd}:401: " in described.stdout
    assert document["model_uri"] == "models:/output-length/1"
    assert document["metrics"]["mae"] > 0
    assert document["metrics"]["baselines"]["class_gaussian"]["mae"] > 0
    assert sum(document["rows"].values()) == 400
    plots = {path.name for path in workspace.artifacts.rglob("plots/*.png")}
    assert plots == {
        "predicted_against_true.png", "calibration.png", "error_by_class.png", "interval_width.png",
        "importances.png",
    }  # fmt: skip

    done = run("predict", "--model", "models:/output-length@champion",
               "--input", rows, "--output", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    first = json.loads(out.read_text().splitlines()[0])
    quantiles = list(first["quantiles"].values())
    assert list(first["quantiles"])[::11] == ["0.05", "0.99"]
    assert quantiles == sorted(quantiles)
    assert len(out.read_text().splitlines()) == 400

    again = run("register", document["directory"], "--alias", "shadow", "--json")
    assert json.loads(again.stdout)["aliases"] == ["shadow"]
    table = json.loads(run("compare", "--json").stdout)
    assert [v["version"] for v in table["versions"]] == [1, 2]
    assert table["versions"][0]["metrics"]["mae"] == pytest.approx(document["metrics"]["mae"])
    assert table["versions"][1]["metrics"]["mae"] == pytest.approx(document["metrics"]["mae"])
    assert "champion" in run("compare").stdout


def test_without_data_the_synthetic_corpus_is_used_and_named(run, monkeypatch):
    monkeypatch.delenv("LENGTHWISE_DATA", raising=False)
    trained = run("train", "--limit", 300)
    assert trained.exit_code == 0, trained.output
    assert "data: synthetic" in trained.stdout
    assert "say nothing of real data" in trained.stdout
    assert "class_quantiles" in trained.stdout
    uri = next(line for line in trained.stdout.splitlines() if "models:/m-" in line).split()[0]
    assert f"lengthwise register {uri}" in trained.stderr
    registered = run("register", uri)
    assert registered.stdout.startswith("models:/output-length/1 (alias: champion")


def test_unknown_models_are_refused(refuses, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x"}\n')
    for name, words in {
        "nothing-here": "neither a directory nor a model URI",
        "models:/output-length@champion": "not found",
        str(tmp_path): "holds no card.json",
    }.items():
        line = refuses("predict", "--model", name, "--input", rows, "--output", tmp_path / "out")
        assert words in line
    assert "not found" in refuses("register", "models:/output-length/4")
    unknown = ("--predictor", "models:/output-length/4")
    assert "--predictor none" in refuses("serve", "tiny", "--port", "0", *unknown)


def test_a_corrupt_predictor_is_refused(refuses, predictor_dir, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x"}\n')
    broken = tmp_path / "broken"
    shutil.copytree(predictor_dir, broken)
    (broken / "features.npz").write_bytes(b"PK not really")
    line = refuses("predict", "--model", broken, "--input", rows, "--output", tmp_path / "out")
    assert "features.npz" in line
    (broken / "card.json").write_text("{")
    line = refuses("predict", "--model", broken, "--input", rows, "--output", tmp_path / "out")
    assert "card.json" in line


def test_a_dead_tracking_server_stops_a_training_before_it_starts(refuses, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    start = time.monotonic()
    for command in (["train", "--pack", "synthetic"], ["compare"], ["register", "models:/x/1"]):
        assert f"http://127.0.0.1:{port} does not answer" in refuses(*command)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no data source"),
        (b"", ""),
        (b'{"prompt": "x", "response": \n{"prompt"', "not JSON"),
        (b'{"response": "an answer to nothing"}\n', ":1"),
        (b'{"prompt": "x", "output_tokens": -4}\n', ":1"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_bad_data_files_are_refused(refuses, tmp_path, content, words):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    line = refuses("train", "--input", path)
    assert words in line
    assert "rows.jsonl" in line


def test_an_archive_truncated_before_its_first_row_is_refused(refuses, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "x", "output_tokens": 4}\n' * 1000)[:15])
    assert "gzip" in refuses("train", "--input", path)


def test_too_little_data_is_refused(refuses, run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    run("data", "synthesize", "--output", rows, "--rows", 30)
    assert "too small" in refuses("train", "--input", rows)


def test_options_that_contradict_or_do_not_exist(refuses, run):
    assert "one of --pack" in refuses("train", "--pack", "gpt35", "--input", "x.jsonl")
    assert "unknown estimator" in refuses("train", "--pack", "synthetic", "--estimator", "oracle")
    assert run("train", "--nonsense").exit_code == 2
    assert run("predict", "--model", "x").exit_code == 2


def test_an_unwritable_output_is_one_line(refuses, predictor_dir, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x"}\n')
    target = tmp_path / "missing" / "out.jsonl"
    line = refuses("predict", "--model", predictor_dir, "--input", rows, "--output", target)
    assert str(target.parent) in line


def test_debug_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_DEBUG", "1")
    assert run("compare").exit_code == 0
    result = run("register", "models:/output-length/4")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "RegistryError"


def test_data_list_names_what_is_there(run, monkeypatch):
    monkeypatch.delenv("LENGTHWISE_DATA", raising=False)
    listed = json.loads(run("data", "list", "--json").stdout)
    assert listed["default"] == "synthetic"
    assert {s["name"]: s["state"] for s in listed["sources"]}["dolly_15k"] == "to fetch"


def test_data_describe(run, refuses):
    described = json.loads(run("data", "describe", "synthetic", "--json").stdout)
    assert described["source_label"] == "synthetic"
    assert "no data source" in refuses("data", "describe", "nothing")
    assert "no public set" in refuses("data", "fetch", "nothing")
