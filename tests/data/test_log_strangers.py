"""What stands or vanishes in a request log's folder beside its files costs no row."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lengthwise.data.request_log import (
    ROW_KEYS,
    RequestLogWriter,
    newest_requests,
    read_request_log,
    reader,
)
from lengthwise.data.request_log.log_files import log_files

ROW = dict.fromkeys(ROW_KEYS) | {
    "slo_class": "chat", "prompt_tokens": 4, "output_tokens": 10, "status": "finished",
}  # fmt: skip
NAME = "requests-20200101T000000.000000-1-0.jsonl"


def dangling(folder):
    (folder / NAME).symlink_to(folder / "nowhere")


def a_folder(folder):
    (folder / NAME).mkdir()
    (folder / NAME / "kept").write_text("x" * 90_000)


def a_pipe(folder):
    os.mkfifo(folder / NAME)


def a_loop(folder):
    (folder / NAME).symlink_to(folder / NAME)


def written(folder, rows=200):
    writer = RequestLogWriter(folder, max_bytes=8000, max_total_bytes=30_000, flush_s=0.01)
    for number in range(rows):
        writer.write(ROW | {"request_id": f"r{number}", "arrival_unix_s": 1.0 + number})
    writer.close()
    return writer


@pytest.mark.parametrize("stranger", [dangling, a_folder, a_pipe, a_loop])
def test_what_is_no_file_of_ours_is_left_alone(tmp_path, stranger):
    stranger(tmp_path)
    writer = written(tmp_path)
    assert (writer.written, writer.dropped) == (200, 0)
    assert os.path.lexists(tmp_path / NAME)
    assert len(read_request_log(tmp_path)) == len(newest_requests(tmp_path, 500)) > 10
    assert log_files(tmp_path).unread == [NAME]
    sizes = [one.stat().st_size for one in tmp_path.glob("requests-2*.jsonl") if one.is_file()]
    assert sum(sizes) <= 38_000


@pytest.mark.parametrize("call", ["stat", "unlink"])
def test_a_file_that_another_writer_prunes_at_that_moment(tmp_path, monkeypatch, call):
    (tmp_path / NAME).write_text("x" * 90_000)
    plain = getattr(Path, call)

    def gone(path, *args, **kwargs):
        if path.name == NAME:
            raise PermissionError if call == "unlink" else FileNotFoundError
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, call, gone)
    writer = written(tmp_path)
    assert (writer.written, writer.dropped) == (200, 0)


@pytest.mark.parametrize("read", [read_request_log, lambda folder: newest_requests(folder, 500)])
def test_a_file_that_is_pruned_while_it_is_read(tmp_path, monkeypatch, read):
    written(tmp_path)
    oldest = min(tmp_path.glob("requests-*.jsonl"))
    rows = len(oldest.read_text().splitlines())
    whole = len(read(tmp_path))
    plain = log_files

    def then_pruned(folder):
        found = plain(folder)
        oldest.unlink()
        return found

    monkeypatch.setattr(reader, "log_files", then_pruned)
    assert len(read(tmp_path)) == whole - rows
