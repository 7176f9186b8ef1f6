"""The live file follows the registry's aliases; a broken store changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.live import LiveState, read_live, write_live
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.vllm_adapter.server import command, vllm_foreground
from lengthwise.training.cli.app import app
from lengthwise.training.registry import store
from lengthwise.training.registry.follow import (
    FileKeeper,
    Follower,
    follow,
    followed_alias,
    read_policy_file,
)
from lengthwise.training.registry.models import register
from lengthwise.training.workspace import Workspace


@pytest.fixture(scope="module")
def registered(empty_store, predictor_dir, tmp_path_factory):
    """A store in which version 1 is champion and version 2 shadow; registering takes a second."""
    home = Workspace(tmp_path_factory.mktemp("registered"))
    home.mlruns.mkdir()
    shutil.copy(empty_store, home.database)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(predictor_dir, workspace=home)
        register(predictor_dir, alias="shadow", workspace=home)
    return home


@pytest.fixture
def versions(workspace, registered):
    """The workspace with a copy of that store; the artifacts stay where they are."""
    shutil.copy(registered.database, workspace.database)
    return workspace


@pytest.fixture
def said():
    return []


@pytest.fixture
def live_file(tmp_path):
    return tmp_path / "live.json"


def run(*args):
    return CliRunner().invoke(app, ["follow", *map(str, args)])


def version_of(part):
    return None if part is None else part.version


def test_aliases_become_predictor_and_shadow_and_moves_are_followed(versions, live_file):
    write_live(live_file, LiveState(policy="edf", slo_table={"chat": {"ttft_ms": 5}}))
    done = run("--live", live_file, "--once")
    assert done.exit_code == 0, done.output
    state = read_live(live_file)
    assert version_of(state.predictor) == "models:/output-length/1"
    assert version_of(state.shadow) == "models:/output-length/2"
    assert (state.policy, state.slo_table) == ("edf", {"chat": {"ttft_ms": 5}})
    for part in (state.predictor, state.shadow):
        assert os.path.isfile(f"{part.directory}/card.json")  # noqa: PTH113
    before = live_file.stat().st_mtime_ns
    assert run("--live", live_file, "--once").exit_code == 0
    assert live_file.stat().st_mtime_ns == before

    register("models:/output-length/2", alias="champion", workspace=versions)
    done = run("--live", live_file, "--once")
    moved = "predictor models:/output-length/1 -> models:/output-length/2"
    assert moved in " ".join(done.stderr.split())
    state = read_live(live_file)
    assert version_of(state.predictor) == "models:/output-length/2"
    assert state.shadow is None  # the champion's own shadow would say nothing new


def test_a_store_that_is_missing_or_locked_keeps_the_file(versions, live_file, said, monkeypatch):
    monkeypatch.setattr(store, "LOCK_TIMEOUT_S", 0.05)
    follower = Follower(versions, said.append)
    state = follower.update(LiveState())
    assert said == []
    holder = sqlite3.connect(versions.database)
    holder.execute("BEGIN EXCLUSIVE")
    assert follower.update(state) is state
    assert follower.update(state) is state
    holder.close()
    assert len(said) == 1
    assert "locked" in said[0]
    away = versions.database.rename(versions.database.with_suffix(".away"))
    assert follower.update(state) is state
    assert "does not exist" in said[1]
    away.rename(versions.database)
    assert follower.update(state) == state
    assert len(said) == 2


def test_a_version_whose_files_are_lost_keeps_the_file(versions, registered, said, request):
    away = registered.artifacts.rename(registered.root / "away")
    request.addfinalizer(lambda: away.rename(registered.artifacts))
    assert Follower(versions, said.append).update(LiveState()) == LiveState()
    assert "has no predictor" in said[0]


def test_an_empty_registry_says_so(workspace, live_file):
    done = run("--live", live_file, "--once")
    assert done.exit_code == 0
    assert "output-length" in done.stderr
    assert read_live(live_file) == LiveState()


def test_a_live_file_that_goes_missing_is_made_again(versions, live_file, said, monkeypatch):
    write_live(live_file, LiveState(policy="edf"))
    turns = []

    def sleep(seconds):
        turns.append(read_live(live_file))
        live_file.unlink()
        if len(turns) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("lengthwise.training.registry.follow.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        follow(live_file, Follower(versions, said.append), poll_s=1, once=False, say=said.append)
    assert turns[0] == turns[1] == turns[2]
    assert turns[0].policy == "edf"
    assert turns[0].predictor is not None


def test_a_file_that_is_no_live_file_is_left_alone(versions, live_file):
    live_file.write_text('{"polcy": 1}')
    done = run("--live", live_file, "--once")
    assert done.exit_code == 2
    assert "polcy" in done.stderr
    assert live_file.read_text() == '{"polcy": 1}'


def test_a_mistyped_folder_is_refused_and_not_made(versions, tmp_path):
    mistyped = tmp_path / "rnu" / "live.json"
    done = run("--live", mistyped, "--once")
    assert done.exit_code == 2
    assert f"no folder {mistyped.parent}" in done.stderr.replace("\n", "")
    assert not mistyped.parent.exists()


def test_only_an_alias_moves():
    assert followed_alias("models:/output-length@champion") == "champion"
    assert followed_alias("models:/output-length@canary") == "canary"
    for fixed in ("models:/output-length/3", "runs/x/predictor", "none", "models:/other@champion"):
        assert followed_alias(fixed) is None


def test_files_are_read_anew_on_request_only_and_bad_ones_change_nothing(live_file, tmp_path, said):
    policy = tmp_path / "policy.json"
    policy.write_text('{"policy": "sa", "policy_params": {"horizon": 2.0}}')
    write_live(live_file, LiveState(policy="edf"))
    keeper = FileKeeper(None, said.append, (lambda: read_policy_file(policy),))
    keeper.keep(live_file, reread=False)
    assert read_live(live_file).policy == "edf"
    keeper.keep(live_file, reread=True)
    assert read_live(live_file).policy_params == {"horizon": 2.0}
    policy.write_text('{"policy": "magic"}')
    keeper.keep(live_file, reread=True)
    assert read_live(live_file).policy == "sa"
    assert any("magic" in line for line in said)


@pytest.mark.parametrize("content", ["{", "[]", '{"params": {}}', '{"policy": "edf", "x": 1}'])
def test_a_wrong_policy_file(tmp_path, content):
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(InputError, match="policy file"):
        read_policy_file(path)


def test_serve_keeps_a_live_file_and_sighup_reads_everything_anew(
    versions, tmp_path, said, monkeypatch
):
    """A stand-in for vLLM prints its settings' live file whenever it has changed."""
    seen = tmp_path / "seen.jsonl"
    program = f"""
import json, os, pathlib, time
settings = json.loads(pathlib.Path(os.environ["LENGTHWISE_SERVER_CONFIG"]).read_text())
last, end = None, time.time() + 20
while time.time() < end:
    text = pathlib.Path(settings["live_file"]).read_text()
    if text != last:
        last = text
        with open({str(seen)!r}, "a") as out: out.write(json.dumps(json.loads(text)) + "\\n")
        if json.loads(text)["policy"] == "llf": break
    time.sleep(0.01)
"""
    monkeypatch.setattr(command, "_entry_point", lambda model: [sys.executable, "-c", program])
    policy = {"policy": "edf"}
    follower = Follower(versions, said.append)
    keeper = FileKeeper(follower, said.append, (lambda: policy,), poll_s=0.05)

    def states():
        return [json.loads(line) for line in seen.read_text().splitlines()] if seen.exists() else []

    def operate():
        while not states() or states()[-1]["predictor"] is None:
            time.sleep(0.01)
        policy["policy"] = "llf"
        os.kill(os.getpid(), signal.SIGHUP)

    thread = threading.Thread(target=operate, daemon=True)
    thread.start()
    before = signal.getsignal(signal.SIGHUP)
    code = vllm_foreground.serve_forever(
        "m", ServerSettings(policy="edf"), ["--port", "0"], cache_dir=tmp_path, keeper=keeper
    )
    assert code == 1  # the stand-in ends unasked
    assert signal.getsignal(signal.SIGHUP) is before
    first, *_, last = states()
    assert (first["policy"], first["predictor"]) == ("edf", None)
    assert last["policy"] == "llf"
    assert last["predictor"]["version"] == "models:/output-length/1"
    assert last["shadow"]["version"] == "models:/output-length/2"
