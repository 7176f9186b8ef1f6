"""Whatever goes wrong ends in one line, wherever the output goes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.training import console
from lengthwise.training.cli.app import LengthwiseGroup, one_line

COMMAND = f"{sys.executable} -m lengthwise"


def shell(line, home, **env):
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=home, timeout=300, check=False,
        env={**os.environ, "LENGTHWISE_HOME": str(home), **env},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("command", ["--version", "--help", "data list", "data list --json"])
def test_a_full_disk_is_told_in_one_line(tmp_path, command):
    done = shell(f"{COMMAND} {command} > /dev/full", tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("lengthwise: error: [Errno 28] No space left")
    assert "--debug" in line


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["--version", "data list"])
def test_streams_that_are_closed_are_lost_and_nothing_else(tmp_path, command, closing):
    done = shell(f"{COMMAND} {command} {closing}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_registry_is_read_without_a_stream_to_tell_it_to(workspace):
    done = shell(f"{COMMAND} compare >&-", workspace.root)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    done = shell(f"{COMMAND} data list | true", tmp_path)
    assert done.stderr == ""


def failing(error):
    app = typer.Typer(cls=LengthwiseGroup)

    @app.command()
    def fail() -> None:
        raise error

    @app.command()
    def other() -> None:
        return

    return app


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a: b\nc"), "a: b c"),
        (KeyError("x"), "KeyError: 'x' (lengthwise --debug ... shows where)"),
        (RuntimeError(), "RuntimeError (lengthwise --debug ... shows where)"),
        (MemoryError(), "MemoryError (lengthwise --debug ... shows where)"),
        (RecursionError("deep\n  deeper"), "RecursionError: deep deeper (lengthwise --debug"),
        (ModuleNotFoundError("No module named 'psycopg2'"), "No module named 'psycopg2'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device (lengthwise"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "no"), "UnicodeEncodeError"),
        (AssertionError("never"), "AssertionError: never"),
    ],
)
def test_every_exception_is_one_line(error, line, monkeypatch):
    done = CliRunner().invoke(failing(error), ["fail"])
    assert done.exit_code == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("lengthwise: error: ")
    assert line in said
    assert one_line(error) in said
    monkeypatch.setenv("LENGTHWISE_DEBUG", "1")
    assert CliRunner().invoke(failing(error), ["fail"]).exception is error


def test_long_work_is_told_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "TOLD_EVERY_S", 0.02)
    with console.progress() as steps:
        steps.step("reading", 100)
        steps.advance(40)
        ended = console.threading.Event()
        for _ in range(200):
            if "reading 40 of 100" in (told := capsys.readouterr().err):
                break
            ended.wait(0.02)
    assert "lengthwise: 0 s: reading 40 of 100" in told
    monkeypatch.setattr(console, "TOLD_EVERY_S", 10.0)
    with console.progress() as steps:
        steps.step("soon done")
    assert capsys.readouterr().err == ""
