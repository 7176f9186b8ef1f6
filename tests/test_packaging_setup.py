"""`requirements/setup.sh` with interpreters of our own making: which Python, and which torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# answers like a Python whose pip and uv know no more than $KNOWN_TO_PIP and $KNOWN_TO_UV
FAKE = f"""#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
*"-m uv "*"$KNOWN_TO_UV") exit 0 ;;
*"-m uv "*) exit 1 ;;
*" uv" | *"--no-deps "*) exit 0 ;;
*"-m pip "*" $KNOWN_TO_PIP") exit 0 ;;
*"-m pip "*) echo "ERROR: no matching distribution" >&2; exit 1 ;;
*"-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
*) exec {sys.executable} -I -S "$@" ;;
esac
"""
# what a version manager leaves on PATH for a version that is not chosen
SHIM = "#!/bin/sh\necho 'command not found' >&2\nexit 127\n"


@pytest.fixture
def set_up(tmp_path):
    """Run the script with these programs first on PATH, where pip and uv know these versions."""

    def run(programs, pip="", uv="", folder="lengthwise", asked=(".venv",), **env):
        home = tmp_path / folder
        home.mkdir(parents=True)
        (home / "requirements").symlink_to(ROOT / "requirements")
        path = tmp_path / "bin"
        path.mkdir(exist_ok=True)
        for name in ("python3.11", "python3.12", "python3.13", "python3"):
            (path / name).write_text(programs.get(name, SHIM))
            (path / name).chmod(0o755)
        calls = tmp_path / "calls"
        environment = {
            "PATH": f"{path}:/usr/bin:/bin", "CALLS": str(calls), "TMPDIR": str(tmp_path),
            "KNOWN_TO_PIP": pip or "nothing", "KNOWN_TO_UV": uv or "nothing",
        }  # fmt: skip
        done = subprocess.run(
            ["sh", "requirements/setup.sh", *asked],
            capture_output=True, text=True, cwd=home, env=environment | env, check=False,
        )  # fmt: skip
        return done, home, calls.read_text() if calls.exists() else ""

    return run


def torch_line():
    return (ROOT / "requirements/torch.txt").read_text().strip()


def test_it_takes_the_first_python_that_runs(set_up):
    done, home, calls = set_up({"python3.12": FAKE}, pip=torch_line())
    assert done.returncode == 0, done.stderr
    assert "setup: Python 3." in done.stderr
    assert "python3.12 -m venv" in calls
    assert (home / ".venv/bin/python").exists()


def test_a_python_named_is_the_only_one_tried(set_up):
    done, _, calls = set_up({"python3.11": FAKE}, pip=torch_line(), PYTHON="python3.13")
    assert done.returncode == 1
    assert "none of these" in done.stderr
    assert "python3.13" in done.stderr
    assert calls == ""


def test_no_python_is_one_line(set_up):
    done, home, _ = set_up({})
    assert done.returncode == 1
    assert "none of these is a Python 3.11 to 3.13" in done.stderr
    assert not (home / ".venv").exists()


@pytest.mark.parametrize("way", ["pip", "uv", "plain", "none"])
def test_torch_comes_by_three_ways_and_it_is_said_which(set_up, way):
    plain = torch_line().removesuffix("+cpu")
    known = {"pip": {"pip": torch_line()}, "uv": {"uv": plain}, "plain": {"pip": plain}, "none": {}}
    done, _, calls = set_up({"python3.11": FAKE}, **known[way])
    assert done.returncode == (way == "none")
    said = {
        "pip": f"{torch_line()} from where pip looks",
        "uv": f"{plain} for CPU, by uv",
        "plain": "it runs on CPU too",
        "none": "cannot be had",
    }
    assert said[way] in done.stderr
    assert ("--torch-backend=cpu" in calls) == (way != "pip")
    assert ("pinned.txt" in calls) == (way != "none")


def test_in_a_path_with_a_space_the_environment_lies_elsewhere(set_up, tmp_path):
    done, home, _ = set_up(
        {"python3.11": FAKE}, pip=torch_line(), folder="my clone/lengthwise",
        XDG_CACHE_HOME=str(tmp_path / "cache"), HOME=str(tmp_path / "no home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert " " not in str((home / ".venv").readlink())
    assert str(tmp_path / "cache") in str((home / ".venv").readlink())
    assert (home / ".venv/bin/python").exists()


def test_another_environment_gets_its_own_list_only(set_up):
    done, home, calls = set_up(
        {"python3.11": FAKE}, pip=torch_line(), asked=(".lengthwise/lmdeploy", "lmdeploy")
    )
    assert done.returncode == 0, done.stderr
    assert (home / ".lengthwise/lmdeploy/bin/python").exists()
    assert "--no-deps -r requirements/lmdeploy.txt" in calls
    assert "pinned.txt" not in calls
    assert not (home / ".venv").exists()


def test_it_needs_no_home(set_up, tmp_path):
    done, home, _ = set_up({"python3.11": FAKE}, pip=torch_line(), folder="a b/lengthwise")
    assert done.returncode == 0, done.stderr
    assert (home / ".venv").readlink().is_relative_to(tmp_path / "lengthwise")
