"""The examples that need no engine run; the unit, the crontab and the compose file are well formed.

Those that talk to a server run in tests/vllm/test_example_clients.py.
"""

import configparser
import json
import shlex
import subprocess
import sys
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
    for part in inner.split("&&"):
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
