"""A process with a large memory ends at once, and as others do."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import atexit, sys
from lengthwise.scheduler.serving.quick_exit import end_quickly

class Told:
    def __del__(self):
        print("found", flush=True)

cycle = [Told()]
cycle.append(cycle)
del cycle
atexit.register(print, "handlers run", flush=True)
if "quickly" in sys.argv:
    end_quickly()
    end_quickly()
sys.stdout.write("unflushed ")
"""


def ended(*words):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split("\n")


def test_nothing_is_looked_through_at_the_end_and_the_rest_goes_on():
    assert ended() == ["unflushed handlers run", "found", ""]
    assert ended("quickly") == ["unflushed handlers run", ""]
