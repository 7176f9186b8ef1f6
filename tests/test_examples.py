"""The examples that need no engine run; the unit, the crontab and the compose file are well formed.

Those that talk to a server run in tests/vllm/live/test_example_clients.py.
"""

import configparser
import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from command_lines import unknown_in

from lengthwise.data.sources.synthetic.corpus import synthetic_table

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def assert_it_parses(command):
    """A `lengthwise` command line: the command exists, and answers to its options."""
    program, *words = command
    assert Path(program).name == "lengthwise"
    assert unknown_in(shlex.join(words)) is None


def test_training_on_rows_of_ones_own(tmp_path):
    table = synthetic_table(300, seed=5)
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for prompt, tokens in zip(table["prompt"], table["output_tokens"], strict=True):
            file.write(json.dumps({"prompt": prompt, "output_tokens": int(tokens)}) + "\n")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train_and_predict.py", rows, tmp_path / "lengths"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    medians = [float(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(medians) == 2
    assert medians[0] < medians[1]
    assert (tmp_path / "lengths/card.json").exists()


def test_the_crontab_has_one_line_whose_commands_exist():
    lines = (EXAMPLES / "retrain.cron").read_text().splitlines()
    (entry,) = [line for line in lines if not line.startswith("#")]
    minute, hour, day, month, weekday, command = entry.split(None, 5)
    assert (int(minute) < 60, int(hour) < 24, day, month, int(weekday) < 8) == (
        True, True, "*", "*", True,
    )  # fmt: skip
    words = shlex.split(command)
    inner = words[words.index("-c") + 1]
    for part in re.split(r"&&|;", inner):
        assert_it_parses(shlex.split(part))


def test_the_unit_is_well_formed():
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read(EXAMPLES / "lengthwise.service")
    service = unit["Service"]
    assert_it_parses(shlex.split(service["ExecStart"]))
    # a server that is asked to stop finishes what is in flight, and systemd waits for it
    grace = shlex.split(service["ExecStart"])
    assert float(service["TimeoutStopSec"]) > float(grace[grace.index("--shutdown-timeout") + 1])
    assert service["Restart"] == "on-failure"


class Health(BaseHTTPRequestHandler):
    """Answers `/health` as vLLM does: with 503 once its engine is dead."""

    def do_GET(self):
        self.send_response(self.server.says if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def answering(says):
    """A server that says so; its port."""
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        server.says = says
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def exit_code(words, port, within_s=60):
    """Of an example's command, turned to another port; -1 when it goes on."""
    command = [word.replace(":8000/", f":{port}/") for word in words]
    try:
        return subprocess.run(command, timeout=within_s, check=False).returncode
    except subprocess.TimeoutExpired:
        return -1


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples ask by curl")
@pytest.mark.parametrize(
    ("says", "started", "stopped", "healthy"),
    [(200, 0, 1, True), (503, -1, 1, False), (None, -1, 0, False)],
)
def test_unit_and_container_know_a_server_that_answers(says, started, stopped, healthy):
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read(EXAMPLES / "lengthwise.service")
    container = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]["server"]
    first, *check = container["healthcheck"]["test"]
    assert first == "CMD"
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        up = contextlib.nullcontext(closed.getsockname()[1]) if says is None else answering(says)
        with up as port:
            patience_s = 60 if started == 0 else 2
            told = exit_code(shlex.split(unit["Service"]["ExecStartPost"]), port, patience_s)
            assert told == started
            assert exit_code(shlex.split(unit["Service"]["ExecStopPost"]), port) == stopped
            assert (exit_code(check, port) == 0) == healthy


def test_the_compose_file_builds_from_what_is_there():
    document = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
    server = document["services"]["server"]
    assert_it_parses(server["command"])
    for line in server["build"]["dockerfile_inline"].splitlines():
        if line.startswith("COPY"):
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists(), line
    for volume in document["services"]["prometheus"]["volumes"]:
        assert (EXAMPLES / volume.split(":")[0]).exists()
    inner = yaml.safe_load(document["configs"]["prometheus"]["content"])
    assert inner["scrape_configs"][0]["static_configs"][0]["targets"] == ["server:8000"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_example_says_how_it_is_used(path):
    assert path.name in (EXAMPLES / "README.md").read_text() or path.name == "README.md"
