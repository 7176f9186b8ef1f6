from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import (
    ROW_KEYS,
    RequestLogWriter,
    limited_writer,
    log_to_table,
    newest_requests,
    read_request_log,
)
from lengthwise.data.sources.load import load_table


def row(number=0, **changes):
    made = dict.fromkeys(ROW_KEYS)
    made |= {
        "request_id": f"r{number}",
        "arrival_unix_s": 1000.0 + number,
        "slo_class": "chat",
        "slo_ttft_ms": 500.0,
        "prompt_tokens": 4,
        "output_tokens": 10 + number,
        "status": "finished",
        "ttft_s": 0.1,
        "met": True,
        "quantiles": {"0.5": 12.0},
        "shadow": "m/2",
        "shadow_tokens": 9.0,
        "shadow_quantiles": {"0.5": 9.0},
        "policy_version": "0.1.0",
        "features": [1.0, 2.0],
        "feature_contract": "v1",
        "prompt": f"question {number}",
    }
    return made | changes


def wait_for(condition, limit_s=5.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_rows_come_back_as_written(tmp_path):
    writer = RequestLogWriter(tmp_path / "log")
    rows = [row(i) for i in range(250)]
    for one in rows:
        writer.write(one)
    writer.close()
    frame = read_request_log(tmp_path / "log")
    assert frame["request_id"].tolist() == [one["request_id"] for one in rows]
    assert frame["quantiles"][0] == {"0.5": 12.0}
    assert (writer.written, writer.dropped, frame.attrs["torn_lines"]) == (250, 0, 0)
    assert set(frame.columns) == set(ROW_KEYS)


def test_it_can_be_read_while_it_grows(tmp_path):
    writer = RequestLogWriter(tmp_path, flush_s=0.02)
    writer.write(row(1))
    wait_for(lambda: writer.written == 1)
    assert len(read_request_log(tmp_path)) == 1
    writer.write(row(2))
    wait_for(lambda: writer.written == 2)
    assert len(read_request_log(tmp_path)) == 2
    writer.close()


def test_a_full_batch_is_flushed_before_its_time(tmp_path):
    writer = RequestLogWriter(tmp_path, flush_s=3600, flush_rows=5)
    for i in range(5):
        writer.write(row(i))
    wait_for(lambda: writer.written == 5)
    assert len(read_request_log(tmp_path)) == 5
    writer.close()


def test_the_thread_writes_a_full_batch_at_once_and_no_row_by_itself(tmp_path):
    writer = RequestLogWriter(tmp_path, flush_s=3600, flush_rows=100, queue_rows=20)
    for i in range(9):
        writer.write(row(i))
        assert not writer._full.is_set()
    time.sleep(0.05)
    assert writer.written == 0
    writer.write(row(9))  # before the line is full, however large a batch may be
    wait_for(lambda: writer.written == 10)
    writer.close()
    assert writer.dropped == 0


def test_a_batch_is_written_so_long_after_its_first_row(tmp_path):
    writer = RequestLogWriter(tmp_path, flush_s=0.2, flush_rows=100)
    for _ in range(2):  # the second after an idle time
        time.sleep(0.3)
        before, began = writer.written, time.monotonic()
        writer.write(row(0))
        wait_for(lambda before=before: writer.written == before + 1)
        assert time.monotonic() - began >= 0.19
    writer.close()


def test_rows_of_several_threads_all_arrive(tmp_path):
    writer = RequestLogWriter(tmp_path, flush_s=0.01, flush_rows=7)

    def write(first):
        for i in range(first, first + 200):
            writer.write(row(i))

    threads = [threading.Thread(target=write, args=(200 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert set(read_request_log(tmp_path)["request_id"]) == {f"r{i}" for i in range(800)}
    assert (writer.written, writer.dropped) == (800, 0)


def test_rotation_by_size_keeps_every_row(tmp_path):
    writer = RequestLogWriter(tmp_path, max_bytes=2000)
    for i in range(60):
        writer.write(row(i))
    writer.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) > 5
    assert all(file.stat().st_size <= 2000 for file in files)
    assert len(read_request_log(tmp_path)) == 60


def test_the_oldest_files_go_when_the_total_is_reached(tmp_path):
    writer = RequestLogWriter(tmp_path, max_bytes=2000, max_total_bytes=6000)
    for i in range(200):
        writer.write(row(i))
    writer.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 6000
    kept = read_request_log(tmp_path)["request_id"].tolist()
    assert kept == [f"r{i}" for i in range(200 - len(kept), 200)]


def test_files_past_their_age_go_and_other_files_stay(tmp_path):
    old = tmp_path / "requests-20000101T000000.000000-1-0.jsonl"
    old.write_text(json.dumps(row(1)) + "\n")
    os.utime(old, (0, 0))
    (tmp_path / "notes.txt").write_text("mine")
    writer = RequestLogWriter(tmp_path, max_age_s=3600)
    writer.write(row(2))
    writer.close()
    assert not old.exists()
    assert (tmp_path / "notes.txt").exists()
    assert read_request_log(tmp_path)["request_id"].tolist() == ["r2"]


def test_a_file_open_for_long_is_closed_so_that_its_rows_can_age(tmp_path):
    now = [1e9]
    writer = RequestLogWriter(tmp_path, max_age_s=1000, flush_rows=1, clock=lambda: now[0])
    for i in range(4):
        writer.write(row(i))
        wait_for(lambda i=i: writer.written == i + 1)
        now[0] += 60
    writer.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_limits_in_the_operators_units(tmp_path):
    writer = limited_writer(tmp_path, max_mb=0.02, max_age_days=1.0)
    for i in range(300):
        writer.write(row(i))
    writer.close()
    files = list(tmp_path.iterdir())
    assert len(files) > 1
    assert 10_000 < sum(file.stat().st_size for file in files) <= 20_000


def test_disk_errors_are_counted_reported_once_and_never_raised(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        writer = RequestLogWriter(blocked / "log", flush_s=0.01)
        for i in range(7):
            writer.write(row(i))
            time.sleep(0.02)
        writer.close()
    assert writer.dropped == 7
    assert writer.written == 0
    assert len([r for r in caplog.records if "loses rows" in r.message]) == 1


def test_writing_goes_on_when_the_disk_is_back(tmp_path):
    blocked = tmp_path / "log"
    blocked.write_text("in the way")
    writer = RequestLogWriter(blocked, flush_s=0.01)
    writer.write(row(1))
    wait_for(lambda: writer.dropped == 1)
    blocked.unlink()
    writer.write(row(2))
    writer.close()
    assert read_request_log(blocked)["request_id"].tolist() == ["r2"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_removed_while_it_is_written_to_is_made_again(tmp_path, what):
    folder = tmp_path / "log"
    writer = RequestLogWriter(folder, flush_s=0.01)
    writer.write(row(1))
    wait_for(lambda: writer.written == 1)
    for file in folder.iterdir():
        file.unlink()
    if what == "folder":
        folder.rmdir()
    writer.write(row(2))
    writer.close()
    assert read_request_log(folder)["request_id"].tolist() == ["r2"]
    assert (writer.written, writer.dropped) == (2, 0)


def test_a_full_disk_leaves_no_empty_files(tmp_path, monkeypatch):
    def full(fd, content):
        raise OSError(28, "No space left on device")

    writer = RequestLogWriter(tmp_path, flush_s=0.01)
    monkeypatch.setattr("lengthwise.data.request_log.writer.os.write", full)
    for i in range(3):
        writer.write(row(i))
        wait_for(lambda done=i + 1: writer.dropped == done)
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_torn_write_is_left_behind_in_its_own_file(tmp_path, monkeypatch):
    real_write = os.write
    calls = []

    def failing_write(fd, content):
        calls.append(fd)
        if len(calls) == 2:
            real_write(fd, bytes(content)[:10])
            raise OSError(28, "No space left on device")
        return real_write(fd, content)

    writer = RequestLogWriter(tmp_path, flush_s=0.01)
    monkeypatch.setattr("lengthwise.data.request_log.writer.os.write", failing_write)
    for i in range(3):
        writer.write(row(i))
        wait_for(lambda done=i + 1: writer.written + writer.dropped == done)
    writer.close()
    monkeypatch.undo()
    frame = read_request_log(tmp_path)
    assert frame["request_id"].tolist() == ["r0", "r2"]
    assert frame.attrs["torn_lines"] == 1
    assert writer.dropped == 1


def test_a_full_queue_drops_and_write_stays_fast(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(RequestLogWriter, "_flush", lambda self, rows: gate.wait(5))
    writer = RequestLogWriter(tmp_path, queue_rows=10, flush_rows=1)
    start = time.perf_counter()
    for i in range(100):
        writer.write(row(i))
    assert time.perf_counter() - start < 1
    assert 80 <= writer.dropped <= 90
    gate.set()
    writer.close()


def test_after_close_rows_are_dropped_and_close_is_safe_twice(tmp_path):
    writer = RequestLogWriter(tmp_path)
    writer.close()
    writer.close()
    writer.write(row(1))
    assert writer.dropped == 1


def test_numpy_and_nan_become_json_and_the_rest_is_dropped(tmp_path):
    writer = RequestLogWriter(tmp_path)
    writer.write(
        row(1, output_tokens=np.int64(7), ttft_s=math.nan, features=np.ones(2, np.float32))
    )
    writer.write(row(2, prompt="\ud83d broken"))
    writer.write(row(3, tenant=object()))
    writer.close()
    frame = read_request_log(tmp_path)
    assert frame["output_tokens"].tolist()[0] == 7
    assert math.isnan(frame["ttft_s"][0])
    assert frame["features"][0] == [1.0, 1.0]
    assert len(frame) == 2
    assert writer.dropped == 1


def test_files_are_private(tmp_path):
    writer = RequestLogWriter(tmp_path)
    writer.write(row(1))
    writer.close()
    assert next(tmp_path.iterdir()).stat().st_mode & 0o077 == 0


def logged(tmp_path, *lines, end="\n"):
    path = tmp_path / "requests-1.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + end)
    return tmp_path


def test_only_an_unfinished_last_line_is_forgiven(tmp_path):
    frame = read_request_log(logged(tmp_path, row(1), '{"request_id": "r2', end=""))
    assert (len(frame), frame.attrs["torn_lines"]) == (1, 1)
    frame = read_request_log(logged(tmp_path, '{"request_id": "r2', row(1)))
    assert len(frame) == 1
    assert re.search(r"requests-1.jsonl:1: not JSON", frame.attrs["skipped"][0]["first"])
    with pytest.raises(InputError, match=r"requests-1.jsonl:1: not JSON"):
        read_request_log(logged(tmp_path, '{"request_id": "r2'))
    with pytest.raises(InputError, match=r"no complete row \(1 torn\)"):
        read_request_log(logged(tmp_path, "{", end=""))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"request_id": None}, "request_id must be text, got None"),
        ({"status": "done"}, "status must be one of finished"),
        (
            {"output_tokens": -1},
            "output_tokens must be a whole number from 0 to 10000000 or null, got -",
        ),
        ({"output_tokens": 2.0}, "output_tokens"),
        ({"ttft_s": "fast"}, "ttft_s must be a number or null"),
        ({"ttft_s": math.nan}, "ttft_s must be a number or null, got nan"),
        ({"met": 1}, "met must be true, false or null"),
        ({"features": [1, "x"]}, "features must be a list of numbers"),
        ({"quantiles": [1]}, "quantiles must be an object"),
        ({"prompt": 3}, "prompt must be text or null"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path, changes, message):
    folder = logged(tmp_path, row(1), row(2, **changes), row(3))
    for frame in (read_request_log(folder), newest_requests(folder, 10)):
        assert frame["request_id"].tolist() == ["r1", "r3"]
        (entry,) = frame.attrs["skipped"]
        assert re.search(message, entry["first"])
        assert "requests-1.jsonl" in entry["first"]
    with pytest.raises(InputError, match=message):
        read_request_log(logged(tmp_path, row(2, **changes), row(2, **changes), row(1)))


def test_no_log_and_missing_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"no request log here|no such file"):
            read_request_log(folder)


def test_finished_rows_are_training_data(tmp_path):
    rows = [
        row(0),
        row(1, status="length"),
        row(2, status="aborted"),
        row(3, status="shed", output_tokens=0),
        row(4, status="failed", output_tokens=None),
        row(5, prompt=None, slo_class=None),
        row(6, output_tokens=0),
        row(7, prompt="Question 0!"),
        row(8, predictor="fixed", status="length"),
    ]
    table = load_table(str(logged(tmp_path, *rows)))
    assert table["output_tokens"].tolist() == [10, 11, 15, 17]
    assert table["censored"].tolist() == [False, True, False, False]
    assert table["prompt"].tolist() == ["question 0", "question 1", None, "Question 0!"]
    assert table["slo_class"].tolist() == ["chat", "chat", "default", "chat"]
    assert table["group"][0] == table["group"][3]
    assert table["group"].nunique() == 3
    assert table["features"].tolist() == [[1.0, 2.0]] * 4
    assert table["feature_contract"].tolist() == ["v1"] * 4
    assert table.attrs["tokenizer"] == "server"
    assert table.attrs["source_label"] == f"log:{tmp_path.name}"


def test_a_log_without_answers_cannot_be_trained_on(tmp_path):
    frame = read_request_log(logged(tmp_path, row(0, status="aborted")))
    with pytest.raises(InputError, match="none of the log's 1 rows is a finished request"):
        log_to_table(frame)


def test_bad_settings():
    with pytest.raises(InputError, match="max_bytes must be at least 1, got 0"):
        RequestLogWriter("x", max_bytes=0)
