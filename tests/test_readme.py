"""README's promises that can be kept by a test: its size, its two commands, what it printed."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_can_be_read_in_one_go():
    assert 6_000 <= len(README.encode()) <= 8_000


def test_the_two_commands_are_targets_that_set_up_what_they_need():
    """`.ci/run` takes them from the page and runs them in a fresh clone."""
    commands = re.findall(r"^(make [a-z]+)\b", README, flags=re.M)
    assert commands == ["make demo", "make test"]
    for command in commands:
        shown = subprocess.run(
            [*command.split(), "--dry-run", "--always-make", "VENV=/nowhere/.venv"],
            capture_output=True, text=True, cwd=ROOT, check=True,
        ).stdout  # fmt: skip
        assert "requirements/setup.sh" in shown
    ci = (ROOT / ".ci/run").read_text()
    assert 'git clone -q . "$scratch/lengthwise"' in ci
    assert "README.md" in ci


def test_there_is_no_file_tree():
    assert not re.search(r"^ {2}\w+\.py +\S", README, flags=re.M)
