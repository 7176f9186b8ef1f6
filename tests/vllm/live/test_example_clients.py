"""The examples that talk to a server, against the real one."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
pytestmark = pytest.mark.vllm


def finished(server):
    """Requests that ended, by class, since the server's start."""
    outcomes = httpx.get(f"{server.url}/lengthwise/status", timeout=60).json()["outcomes"]
    return {
        name: counts.get("finished", 0) + counts.get("length", 0)
        for name, counts in outcomes.items()
    }


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_curl(server):
    before = finished(server)
    shown = run("sh", EXAMPLES / "curl.sh", server.url)
    assert shown.count('"completion_tokens":') == 3
    assert '"policy":"sa"' in shown.replace(" ", "")
    after = finished(server)
    assert after["code"] == before.get("code", 0) + 1
    assert after["default"] == before.get("default", 0) + 2


def test_openai_client(server):
    before = finished(server)
    shown = run(sys.executable, EXAMPLES / "openai_client.py", server.url)
    assert re.search(r"^code: \d+ tokens in [\d.]+ s$", shown, flags=re.M)
    assert re.search(r"^chat: first of \d+ pieces after [\d.]+ s$", shown, flags=re.M)
    assert finished(server)["code"] == before.get("code", 0) + 1
