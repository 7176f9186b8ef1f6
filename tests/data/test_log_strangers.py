"""What stands or vanishes in a request log's folder beside its files costs no row."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lengthwise.data.request_log import RequestLogWriter

NAME = "requests-20200101T000000.000000-1-0.jsonl"


def dangling(folder):
    (folder / NAME).symlink_to(folder / "nowhere")


def a_folder(folder):
    (folder / NAME).mkdir()
    (folder / NAME / "kept").write_text("x" * 9000)


def a_pipe(folder):
    os.mkfifo(folder / NAME)


def a_loop(folder):
    (folder / NAME).symlink_to(folder / NAME)


def written(folder, rows=200):
    writer = RequestLogWriter(folder, max_bytes=1000, max_total_bytes=3000, flush_s=0.01)
    for number in range(rows):
        writer.write({"request_id": f"r{number}"})
    writer.close()
    return writer


@pytest.mark.parametrize("stranger", [dangling, a_folder, a_pipe, a_loop])
def test_what_is_no_file_of_ours_is_left_alone(tmp_path, stranger):
    stranger(tmp_path)
    writer = written(tmp_path)
    assert (writer.written, writer.dropped) == (200, 0)
    assert os.path.lexists(tmp_path / NAME)
    sizes = [one.stat().st_size for one in tmp_path.glob("requests-2*.jsonl") if one.is_file()]
    assert sum(sizes) <= 4000


@pytest.mark.parametrize("call", ["stat", "unlink"])
def test_a_file_that_another_writer_prunes_at_that_moment(tmp_path, monkeypatch, call):
    (tmp_path / NAME).write_text("x" * 9000)
    plain = getattr(Path, call)

    def gone(path, *args, **kwargs):
        if path.name == NAME:
            raise PermissionError if call == "unlink" else FileNotFoundError
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, call, gone)
    writer = written(tmp_path)
    assert (writer.written, writer.dropped) == (200, 0)
