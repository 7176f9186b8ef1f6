"""A server that trains on its own log: when, and what becomes of it."""

from __future__ import annotations

import json
import time

import pytest
from typer.testing import CliRunner

from lengthwise.training.cli.app import app
from lengthwise.training.train import on_its_own
from lengthwise.training.train.on_its_own import STATE_FILE, LogGrowth, SelfTraining, starter


class Child:
    def __init__(self):
        self.code = None
        self.ended = False

    def poll(self):
        return self.code

    def terminate(self):
        self.ended = True


class Commands:
    """What was started, and how it is to end."""

    def __init__(self):
        self.started, self.children = [], []

    def __call__(self, arguments):
        self.started.append(list(arguments))
        self.children.append(Child())
        return self.children[-1]

    def end(self, code):
        self.children[-1].code = code


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


@pytest.fixture
def said():
    return []


def names(commands):
    return [arguments[0] for arguments in commands.started]


def write(log, rows, name="requests-1.jsonl"):
    with (log / name).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"request_id": str(i)}) + "\n" for i in range(rows))


def test_it_trains_at_a_thousand_rows_and_judges_by_those_that_came_since(log, said):
    commands = Commands()
    training = SelfTraining(log, said.append, commands)
    for rows, expected in ((999, 0), (1, 1), (0, 1), (300, 1)):
        write(log, rows)
        training.look()
        assert len(commands.started) == expected
    commands.end(0)
    training.look()
    training.look()
    assert commands.started[1] == ["promote", "--from-log", str(log), "--requests", "300"]
    commands.end(0)
    training.look()
    assert "champion" in said[-1]


def test_the_next_training_is_at_twice_as_many(log, said):
    commands = Commands()
    training = SelfTraining(log, said.append, commands, first_rows=400)
    write(log, 400)
    training.look()
    commands.end(0)
    training.look()
    assert "next 100 requests" in said[-1]
    write(log, 99)
    training.look()
    assert names(commands) == ["train"]
    write(log, 1)
    training.look()
    assert names(commands) == ["train", "promote"]
    commands.end(0)
    for rows, expected in ((299, 2), (1, 3)):
        write(log, rows)
        training.look()
        assert len(commands.started) == expected
    assert names(commands)[-1] == "train"


def test_a_version_that_waits_to_be_judged_is_judged_after_a_restart(log, said):
    commands = Commands()
    training = SelfTraining(log, said.append, commands, first_rows=400)
    write(log, 400)
    training.look()
    commands.end(0)
    training.look()
    write(log, 120)
    again = SelfTraining(log, said.append, commands, first_rows=400)
    again.look()
    assert commands.started[-1][-2:] == ["--requests", "120"]


@pytest.mark.parametrize(
    ("codes", "word"),
    [((2,), "training failed (exit 2)"), ((0, 1), "no better"), ((0, 2), "promotion failed")],
)
def test_what_fails_or_is_refused_is_said_and_tried_again_with_more_rows(log, said, codes, word):
    commands = Commands()
    training = SelfTraining(log, said.append, commands, first_rows=400)
    write(log, 400)
    training.look()
    for code in codes:
        commands.end(code)
        write(log, 100)
        training.look()
    assert word in said[-1]
    started = len(commands.started)
    training.look()
    assert len(commands.started) == started
    write(log, 400)
    training.look()
    assert names(commands)[started:] == ["train"]


def test_nothing_is_counted_twice_over_restarts_and_files_that_go(log):
    write(log, 30)
    growth = LogGrowth.of(log)
    assert growth.count() == 30
    growth.begun()
    write(log, 5)
    write(log, 7, "requests-2.jsonl")
    (log / "texts-1.jsonl").write_text("{}\n", encoding="utf-8")
    again = LogGrowth.of(log)
    assert again.count() == 42
    (log / "requests-1.jsonl").unlink()
    write(log, 1, "requests-2.jsonl")
    assert again.count() == 43
    assert again.since_training == 13
    assert not again.due(14)
    assert not again.due(10)
    again.trained = 0
    assert again.due(43)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"rows": "many"}', '{"rows": 1, "trained": 2}', '{"read": 3}']
)
def test_a_broken_note_of_what_was_learned_begins_anew(log, text):
    (log / STATE_FILE).write_text(text, encoding="utf-8")
    growth = LogGrowth.of(log)
    assert (growth.rows, growth.trained) == (0, 0)


def test_a_running_training_ends_with_the_server(log, said):
    commands = Commands()
    training = SelfTraining(log, said.append, commands, first_rows=1)
    training.close()
    write(log, 1)
    training.look()
    training.close()
    assert commands.children[0].ended


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--learn"], "give --request-log DIR"),
        (["--learn", "--request-log", "log", "--predictor", "models:/output-length/1"], "follow"),
        (["--learn", "--request-log", "log", "--predictor", "none"], "follow"),
    ],
)
def test_what_cannot_learn_is_refused_before_anything_loads(workspace, arguments, word):
    done = CliRunner().invoke(app, ["serve", "tiny", *arguments])
    assert done.exit_code == 2
    assert word in done.output.replace("\n", " ")


def test_the_commands_are_real_ones(log, said, workspace, tmp_path):
    """A log without rows to train on: the child runs, and says so."""
    write(log, 3)
    output = tmp_path / "learning.log"
    training = SelfTraining(log, said.append, starter(output), first_rows=3)
    training.look()
    deadline_s = time.monotonic() + 120
    while len(said) < 2 and time.monotonic() < deadline_s:
        training.look()
        time.sleep(0.1)
    assert "training failed" in said[-1]
    assert "log" in output.read_text(encoding="utf-8")
    assert on_its_own.FIRST_ROWS == 1_000
