"""How a server starts and ends, with a process that stands in for vLLM: no engine is loaded."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest

from lengthwise.scheduler.serving.server import parent_watch
from lengthwise.training.bench.engines.servers import free_port

# The first process of a server, with one that stands for the engine under it. HOW is a set of
# words: "stubborn" ignores SIGTERM, "listens" takes connections, "finishes" ends 1.5 s after
# SIGTERM, "leaves" ends at once and leaves its engine behind, which is in a process group of its
# own where it is "apart"; the engine "shares" memory.
STAND_IN = '''
import os, pathlib, signal, socket, subprocess, sys, time
port, folder, how = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
def end(number, frame):
    if "finishes" in how:
        time.sleep(1.5)
        (folder / "finished").touch()
    if "stubborn" not in how:
        os._exit(0)
signal.signal(signal.SIGTERM, end)
sharing = """
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=64)
open(sys.argv[1], "w").write(memory.name)
"""
code = "import sys, time\\n" + (sharing if "shares" in how else "") + "time.sleep(600)"
engine = subprocess.Popen([sys.executable, "-S", "-c", code, str(folder / "shared")],
                          process_group=0 if "apart" in how else None)
if "listens" in how:
    listener = socket.create_server(("127.0.0.1", port))
(folder / "pids").write_text(f"{os.getpid()} {engine.pid}")
if "leaves" in how:
    os._exit(3)
while True:
    time.sleep(0.05)
'''

LAUNCHER = """
import signal, sys
from lengthwise.scheduler.vllm_adapter.server import command, vllm_foreground
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests under nohup inherit that it is ignored
program, port, folder, how, *options = sys.argv[1:]
command._entry_point = lambda model: [sys.executable, "-S", "-c", program, port, folder, how]
arguments = ["--port", port, *options]
sys.exit(vllm_foreground.serve_forever("m", None, arguments, cache_dir=folder, stop_grace_s=1.0))
"""


class Life:
    """A launcher with its stand-in."""

    def __init__(self, folder: Path, how: str, *options: str) -> None:
        self.folder = folder
        arguments = [STAND_IN, str(free_port()), str(folder), how, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *arguments], stderr=subprocess.PIPE, text=True
        )

    def is_up(self) -> None:
        """Wait for the stand-in."""
        assert wait_for(lambda: len(self.pids()) == 2, 120.0)

    def pids(self) -> list[int]:
        with contextlib.suppress(OSError):
            return [int(word) for word in (self.folder / "pids").read_text().split()]
        return []

    def ended(self, within_s: float = 60.0) -> float:
        """Seconds until the launcher and all it started are gone."""
        began_s = time.monotonic()
        assert self.process.wait(within_s) is not None
        left = within_s - (time.monotonic() - began_s)
        assert wait_for(lambda: not any(map(is_alive, self.pids())), left), self.pids()
        assert wait_for(lambda: not self.run_folders(), 20.0)
        return time.monotonic() - began_s

    def run_folders(self) -> list[Path]:
        return list((self.folder / "run").glob("*"))


@pytest.fixture
def live(tmp_path):
    lives = []

    def start(how="", *options):
        lives.append(Life(tmp_path, how, *options))
        return lives[-1]

    yield start
    for life in lives:
        life.process.kill()
        life.process.communicate()
        for pid in life.pids():
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()


def is_alive(pid):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_for(holds, within_s=20.0):
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGABRT])
def test_a_launcher_that_dies_takes_its_server_along(live, number):
    life = live("listens")
    life.is_up()
    life.process.send_signal(number)
    assert life.ended() < 60.0


def test_so_does_one_whose_server_will_not_listen(live):
    """Asked, then killed: within the grace, not within --shutdown-timeout."""
    life = live("listens stubborn apart")
    life.is_up()
    life.process.kill()
    assert life.ended() > 0.5


@pytest.mark.parametrize(
    ("number", "after_s"),
    [(number, after_s) for number in (signal.SIGKILL, signal.SIGTERM) for after_s in (0.2, 1, 1.5)],
)
def test_at_any_moment_of_a_start(live, number, after_s):
    life = live()
    time.sleep(after_s)
    life.process.send_signal(number)
    assert life.ended() < 60.0


@pytest.mark.parametrize("held", [False, True])
def test_a_watch_that_begins_after_its_launcher_is_gone(tmp_path, held):
    """What was said is in the pipe; somebody else may hold its other end open."""
    folder = tmp_path / "server-1"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                          start_new_session=True) as server:  # fmt: skip
        reading, writing = os.pipe()
        os.write(writing, f"{server.pid}\n".encode())
        if not held:
            os.close(writing)
        nobody = str(2**22)  # no parent of ours
        script = [sys.executable, "-I", "-S", parent_watch.__file__, nobody, "5", str(folder)]
        done = subprocess.run(script, stdin=reading, timeout=60, check=False)
        assert done.returncode == 0
        assert server.wait(1) == -signal.SIGTERM
    assert not folder.exists()


def test_a_stop_is_success_and_tells_the_server_once(live):
    life = live("listens finishes", "--shutdown-timeout", "20")
    life.is_up()
    life.process.terminate()
    life.ended()
    assert life.process.returncode == 0
    assert (life.folder / "finished").exists()


@pytest.mark.parametrize(
    ("how", "options"), [("stubborn", ("--shutdown-timeout", "600")), ("listens stubborn", ())]
)
def test_who_will_not_stop_is_killed_in_time(live, how, options):
    """A server that still loads has nothing to finish, whatever --shutdown-timeout says."""
    life = live(how, *options)
    life.is_up()
    life.process.terminate()
    assert life.ended() > 0.5
    assert "has not stopped in time" in life.process.stderr.read()


def test_so_is_one_whose_output_nobody_reads_any_more(live):
    """`lengthwise serve ... 2>&1 | head`: that the kill cannot be told must not prevent it."""
    life = live("stubborn")
    life.is_up()
    life.process.stderr.close()
    life.process.stderr = None
    life.process.terminate()
    assert life.ended() > 0.5
    assert life.process.returncode == 0


def test_a_second_signal_kills(live):
    life = live("listens stubborn", "--shutdown-timeout", "600")
    life.is_up()
    life.process.terminate()
    time.sleep(0.3)
    life.process.send_signal(signal.SIGINT)
    assert life.ended() < 60.0  # not the 600 s it was given
    assert not any(map(is_alive, life.pids()))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory in files here")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_shared_memory_of_a_server_that_is_killed_goes_with_it(live, number):
    """And nothing else does: what another process shares stays."""
    ours = SharedMemory(create=True, size=64)
    try:
        life = live("listens stubborn shares apart")
        life.is_up()
        name = life.folder / "shared"
        assert wait_for(lambda: name.exists() and name.read_text())
        shared = Path("/dev/shm") / name.read_text().lstrip("/")
        assert shared.exists()
        life.process.send_signal(number)
        life.ended()
        assert wait_for(lambda: not shared.exists(), 5.0)
        assert (Path("/dev/shm") / ours.name).exists()
    finally:
        ours.close()
        ours.unlink()


@pytest.mark.parametrize("how", ["leaves", "leaves apart"])
def test_an_engine_that_is_left_behind_ends(live, how):
    life = live(how)
    life.ended()
    assert life.process.returncode == 3


def test_a_running_server_finds_its_files_again(live):
    life = live("listens")
    life.is_up()
    (folder,) = life.run_folders()
    shutil.rmtree(folder)
    assert wait_for((folder / "metrics").is_dir, 5.0)
    life.process.terminate()
    life.ended()
