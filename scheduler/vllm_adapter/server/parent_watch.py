"""Ends a server whose launcher is gone. Run as a script, beside the server, by the launcher:

    python parent_watch.py LAUNCHER_PID GRACE_S FOLDER < pipe

The pipe brings the server's pid in a line, which is also its process group, and at the end the
line DONE. When the pipe ends without it, or the launcher is no longer our parent (others may hold
the pipe), the server is asked to stop, its group is killed after GRACE_S, and FOLDER, where it kept
its run files, is removed. Only the standard library: it starts in milliseconds and stays small.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import time

DONE = "done"
KEPT_SUFFIX = ".kept"  # of the folder beside the run files, see run_files.py
POLL_S = 0.5
LAST_WORDS_S = 3.0  # what outlives the server's own process may still be writing its logs


def watch(launcher: int, grace_s: float, folder: str) -> None:
    """Wait until the launcher is done with its server, or is gone."""
    said = b""
    while os.getppid() == launcher:
        if not select.select([0], [], [], POLL_S)[0]:
            continue
        part = os.read(0, 4096)
        if not part:
            break
        said += part
        if DONE.encode() in said.split():
            return
    pids = [int(word) for word in said.split() if word.isdigit()]
    for server in pids:
        stop(server, grace_s)
    for made in (folder, folder + KEPT_SUFFIX):
        shutil.rmtree(made, ignore_errors=True)


def stop(server: int, grace_s: float) -> None:
    """Ask the server to stop; kill its group once it has, or after ``grace_s``."""
    deadline_s = time.monotonic() + grace_s
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGTERM)
    while is_running(server) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    end_group(server, min(LAST_WORDS_S, max(0.0, deadline_s - time.monotonic())))


def end_group(leader: int, grace_s: float) -> None:
    """End what is left of a process group: ask, and kill after ``grace_s``."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGTERM)
        deadline_s = time.monotonic() + grace_s
        while time.monotonic() < deadline_s:
            time.sleep(0.05)
            if not any_running(leader):
                return
        os.killpg(leader, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return _state_and_group(pid)[0] not in ("", "Z", "X")


def any_running(group: int) -> bool:
    """Whether a process of the group runs; True where there is no /proc to tell."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        os.killpg(group, 0)  # ProcessLookupError when there is none
        return True
    states = map(_state_and_group, pids)
    return any(of == group and state not in ("", "Z", "X") for state, of in states)


def _state_and_group(pid: int) -> tuple[str, int]:
    """State letter and process group; ("", -1) of no process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            words = file.read().rpartition(")")[2].split()
        return words[0], int(words[2])
    except (OSError, IndexError, ValueError):
        pass
    if os.path.isdir("/proc/self"):  # noqa: PTH112
        return "", -1
    try:  # no /proc: it is at least not gone
        os.kill(pid, 0)
        return "?", os.getpgid(pid)
    except (OSError, ProcessLookupError):
        return "", -1


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its launcher, not before
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
