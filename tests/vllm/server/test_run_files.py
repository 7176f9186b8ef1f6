"""The files of a running server: made again when they go missing, and refused in one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.server.run_files import RunFiles, make_run_files


@pytest.mark.parametrize("gone", ["settings.json", "live.json", "metrics", "."])
def test_run_files_that_go_missing_are_made_again(tmp_path, gone):
    files = RunFiles(tmp_path / "run" / "server")
    files.write("settings.json", "{}")
    files.write("live.json", "old")
    assert files.heal() == []
    files.path("live.json").write_text("new")  # as whoever keeps it does
    assert files.heal() == []
    victim = files.path(gone)
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    wanted = ["settings.json", "live.json", "metrics"] if gone == "." else [gone]
    assert files.heal() == wanted
    assert files.path("settings.json").read_text() == "{}"
    assert files.path("live.json").read_text() == "new"
    assert files.metrics_folder.is_dir()
    assert files.heal() == []
    files.remove()
    assert list((tmp_path / "run").iterdir()) == []


def test_counters_outlive_their_folder(tmp_path):
    """As `/metrics` reads them, and as their processes go on counting."""
    files = RunFiles(tmp_path / "server")
    counting = """
import os, sys
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
counter, gauge = Counter("asked", "x"), Gauge("queued", "x", multiprocess_mode="livesum")
counter.inc(3); gauge.set(7)
for line in sys.stdin:
    counter.inc()
    registry = CollectorRegistry(); MultiProcessCollector(registry)
    text = generate_latest(registry).decode()
    print(" ".join(l for l in text.splitlines() if not l.startswith("#")), flush=True)
"""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(files.metrics_folder)}
    with subprocess.Popen([sys.executable, "-c", counting], env=environment, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # fmt: skip

        def scrape():
            process.stdin.write("\n")
            process.stdin.flush()
            words = process.stdout.readline().split()
            return dict(zip(words[::2], map(float, words[1::2]), strict=True))

        assert scrape() == {"asked_total": 4, "queued": 7}
        files.heal()
        shutil.rmtree(files.folder)
        assert files.heal() == ["metrics"]
        assert scrape() == {"asked_total": 5, "queued": 7}
        process.stdin.close()


def test_no_room_for_run_files_is_one_line(tmp_path, monkeypatch):
    def refuse(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match=r"run files: .*a: No space left .*b: No space left"):
        make_run_files(tmp_path / "a", tmp_path / "b")
    assert [list(path.iterdir()) for path in tmp_path.iterdir()] == [[], []]


def test_the_next_folder_serves_where_one_is_refused(tmp_path):
    (tmp_path / "file").touch()
    files = make_run_files(tmp_path / "file" / "run", tmp_path / "b")
    assert files.folder.parent == tmp_path / "b"
    assert list(files.folder.iterdir()) == [files.metrics_folder]
