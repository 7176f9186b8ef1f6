"""A request log as a workload file: what was answered, in order, and odd rows counted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import logged_workload
from lengthwise.data.workload import read_workload, write_workload

START_S = 1.7e9


def row(number, **changes):
    return {
        "request_id": f"r{number}", "status": "finished", "arrival_unix_s": START_S + number,
        "slo_class": "chat", "slo_ttft_ms": 500.0, "slo_tpot_ms": None, "slo_e2e_ms": None,
        "prompt_tokens": 4, "output_tokens": 9, "max_tokens": 64,
    } | changes  # fmt: skip


def log_of(folder, rows, name="requests-1.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def reasons(skipped):
    return {entry["reason"]: entry["rows"] for entry in skipped.to_list()}


def test_arrivals_lengths_classes_and_objectives_come_along(tmp_path):
    rows = [
        row(3, output_tokens=7),
        row(0),
        row(1.25, slo_class="code", slo_ttft_ms=None, slo_e2e_ms=9000.0, max_tokens=None),
        row(2, slo_class=None, slo_ttft_ms=None, status="length", output_tokens=64),
        row(4, predictor="fixed", status="repetition", tenant="a", features=[1.0]),
    ]
    requests, skipped = logged_workload(log_of(tmp_path / "log", rows))
    assert [r.arrival_s for r in requests] == [0.0, 1.25, 2.0, 3.0, 4.0]
    assert [r.output_tokens for r in requests] == [9, 9, 64, 7, 9]
    assert [r.slo.slo_class for r in requests] == ["chat", "code", "default", "chat", "chat"]
    assert (requests[1].slo.e2e_s, requests[1].slo.ttft_s) == (9.0, None)
    assert [r.max_tokens for r in requests] == [64, None, 64, 64, 64]
    assert all(r.prompt is None for r in requests)
    assert (skipped.read, skipped.rows, skipped.torn) == (5, 0, 0)
    write_workload(tmp_path / "w.jsonl", requests)
    assert read_workload(tmp_path / "w.jsonl") == requests


def test_odd_rows_are_left_out_and_counted(tmp_path):
    odd = [
        row(20, status="aborted", output_tokens=3),
        row(21, status="shed", output_tokens=None),
        row(22, status="aborted"),
        row(23, output_tokens=0),
        row(24, arrival_unix_s=None),
        row(25, arrival_unix_s=5.0),
        row(26, prompt_tokens=None),
        row(27, prompt_tokens=10**9),
        row(28, slo_class="no class!"),
        row(29, status="melted"),
        row(30, arrival_unix_s=1e200),
    ]
    log = log_of(tmp_path / "log", [row(i) for i in range(15)] + odd)
    (log / "requests-2.jsonl").write_text('{"request_id": "torn", "sta')
    requests, skipped = logged_workload(log)
    assert len(requests) == 15
    assert reasons(skipped) == {
        "aborted": 2,
        "shed": 1,
        "needs output_tokens of at least 1": 1,
        "needs its arrival_unix_s": 1,
        "arrival_unix_s must lie within a year of the other rows'": 1,
        "arrival_unix_s must be seconds since 1970, 0 to 1e+11 or null": 1,
        "prompt_tokens must be a whole number from 1 to 10000000": 1,
        "prompt_tokens must be a whole number from 0 to 10000000 or null": 1,
        "slo_class must be a class's name or null": 1,
        "status must be one of finished, length, stopped, repetition, otherwise, aborted, shed, "
        "failed": 1,
    }
    assert (skipped.read, skipped.torn) == (26, 1)


def test_objectives_outside_the_limits_are_those_that_were_served(tmp_path):
    """A time of 0 was late already and one of two days a day, as the server took them."""
    rows = [row(0, slo_ttft_ms=0.0), row(1, slo_ttft_ms=2 * 86_400_000.0), row(2, max_tokens=3)]
    requests, _ = logged_workload(log_of(tmp_path / "log", rows))
    assert [r.slo.ttft_s for r in requests] == [0.001, 86_400.0, 0.5]
    assert requests[0].slo.is_lost
    assert requests[2].max_tokens is None


def test_only_the_newest_are_read(tmp_path):
    log = log_of(tmp_path / "log", [row(i) for i in range(50)])
    log_of(log, [row(i) for i in range(50, 90)], "requests-2.jsonl")
    requests, _ = logged_workload(log, 45)
    assert [r.arrival_s for r in requests] == [float(i) for i in range(45)]
    assert logged_workload(log, 1)[0][0].arrival_s == 0.0


def test_texts_come_along_where_they_are_asked_for_and_kept(tmp_path):
    log = log_of(tmp_path / "log", [row(0, text_id="a"), row(1, text_id="gone"), row(2)])
    (log / "texts-1.jsonl").write_text('{"text_id": "a", "prompt": "Name three rivers."}\n')
    texts = [r.prompt for r in logged_workload(log, with_prompts=True)[0]]
    assert texts == ["Name three rivers.", None, None]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0, status="aborted")], "its length is not known"),
        ([row(0, status="odd")] * 3 + [row(1)], "status must be one of"),
    ],
)
def test_a_log_that_cannot_be_played_says_why(tmp_path, rows, said):
    with pytest.raises(InputError, match=said) as error:
        logged_workload(log_of(tmp_path / "log", rows))
    assert "\n" not in str(error.value)


values = st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats() | st.text(max_size=3)
odd_rows = st.dictionaries(
    st.sampled_from(sorted(row(0))), values | st.lists(values, max_size=2), max_size=3
)


@settings(max_examples=150, deadline=None)
@given(st.lists(odd_rows, max_size=8))
def test_whatever_stands_in_a_log_every_row_is_played_or_counted(tmp_path_factory, changes):
    rows = [row(i) for i in range(20)] + [row(20 + i, **one) for i, one in enumerate(changes)]
    folder = tmp_path_factory.mktemp("log")
    requests, skipped = logged_workload(log_of(folder, rows))
    assert len(requests) + skipped.rows == len(rows)
    write_workload(folder / "w.jsonl", requests)
    assert read_workload(folder / "w.jsonl") == requests
