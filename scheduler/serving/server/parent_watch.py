"""Ends a server whose launcher is gone. Run as a script, beside the server, by the launcher:

    python parent_watch.py LAUNCHER_PID GRACE_S FOLDER < pipe

The pipe brings the server's pid in a line, which also leads its session, and at the end the
line DONE. When the pipe ends without it, or the launcher is no longer our parent (others may hold
the pipe), the server is asked to stop, its session is killed after GRACE_S, and FOLDER, where it
kept its run files, is removed. Only the standard library: it starts in milliseconds, and is small.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

DONE = "done"
KEPT_SUFFIX = ".kept"  # of the folder beside the run files, see run_files.py
POLL_S = 0.5
_MOST_KILLS = 200
ENDED = ("", "Z", "X")
TRACKERS_S = 2.0  # that Python's trackers of shared memory have to tidy up
LAST_WORDS_S = 3.0  # what outlives the server's own process may still be writing its logs


def watch(launcher: int, grace_s: float, folder: str) -> None:
    """Wait until the launcher is done with its server, or is gone."""
    said, ended = b"", False
    while not ended:
        is_ours = os.getppid() == launcher
        # what it said is read even when it was gone before we began
        while select.select([0], [], [], POLL_S if is_ours else 0.0)[0]:
            part = os.read(0, 4096)
            said += part
            if not part:
                ended = True
                break
        if DONE.encode() in said.split():
            return
        ended = ended or not is_ours
    pids = [int(word) for word in said.split() if word.isdigit()]
    for server in pids:
        stop(server, grace_s)
    for made in (folder, folder + KEPT_SUFFIX):
        shutil.rmtree(made, ignore_errors=True)


def stop(server: int, grace_s: float) -> None:
    """Ask the server to stop; kill its session once it has, or after ``grace_s``."""
    deadline_s = time.monotonic() + grace_s
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGTERM)
    while is_running(server) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    end_session(server, min(LAST_WORDS_S, max(0.0, deadline_s - time.monotonic())))


def end_session(leader: int, grace_s: float) -> None:
    """End what is left of a server's session: ask, and kill after ``grace_s``.

    Python's trackers of shared memory are killed last: they remove what the killed leave under
    /dev/shm, which is theirs by their own word, and end by themselves.
    """
    if not signal_all(leader, signal.SIGTERM):
        return
    if _is_over(leader, grace_s):
        return
    deadline_s = time.monotonic() + TRACKERS_S
    while signal_all(leader, signal.SIGKILL, spare=is_tracker) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    if _is_over(leader, max(0.0, deadline_s - time.monotonic())):
        return
    for _ in range(_MOST_KILLS):  # who was being started meanwhile, too
        if not signal_all(leader, signal.SIGKILL):
            return
        time.sleep(0.05)


def _is_over(leader: int, within_s: float) -> bool:
    """Whether nothing of the session is left, now or soon."""
    deadline_s = time.monotonic() + within_s
    while signal_all(leader, 0):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.05)
    return True


def nobody(pid: int) -> bool:
    """No process is spared."""
    return False


def is_tracker(pid: int) -> bool:
    """Whether the process is one of Python's that remove shared memory nobody uses any more."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return b"multiprocessing.resource_tracker" in file.read()
    except OSError:
        return False


def signal_all(leader: int, number: int, spare: Callable[[int], bool] = nobody) -> bool:
    """Signal every process of the session that this one leads; whether there is any."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:  # no /proc: the process group is nearly the same
        try:
            os.killpg(leader, number)
        except (ProcessLookupError, PermissionError):
            return False
        return number != signal.SIGKILL
    found = False
    for pid in pids:
        state, session = _state_and_session(pid)
        if session == leader and state not in ENDED and not spare(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
                found = True
    return found


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return _state_and_session(pid)[0] not in ENDED


def _state_and_session(pid: int) -> tuple[str, int]:
    """State letter and session; ("", -1) of no process."""
    with contextlib.suppress(OSError, IndexError, ValueError):  # it ended meanwhile, or no /proc
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            words = file.read().rpartition(")")[2].split()
        return words[0], int(words[3])
    if os.path.isdir("/proc/self"):  # noqa: PTH112
        return "", -1
    try:  # no /proc: it is at least not gone
        os.kill(pid, 0)
        return "?", os.getsid(pid)
    except OSError:
        return "", -1


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its launcher, not before
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
