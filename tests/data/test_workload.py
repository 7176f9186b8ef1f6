from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest, read_workload, write_workload

LINE = {"arrival_s": 1.0, "prompt_tokens": 3, "output_tokens": 4}

milliseconds = st.none() | st.integers(1, 86_400_000)
slos = st.builds(
    lambda ttft, tpot, e2e, name: Slo(
        *(None if ms is None else ms / 1000 for ms in (ttft, tpot, e2e)), slo_class=name
    ),
    milliseconds,
    milliseconds,
    milliseconds,
    st.sampled_from(["default", "chat", "a.b:c"]),
)
requests = st.lists(
    st.builds(
        WorkloadRequest,
        arrival_s=st.floats(0, 1e6),
        prompt_tokens=st.integers(1, 10**6),
        output_tokens=st.integers(1, 10**6),
        slo=slos,
        prompt=st.none() | st.text(max_size=30),
        task=st.none() | st.text(max_size=8),
        session=st.none() | st.text(max_size=8),
    ).flatmap(
        lambda r: st.one_of(
            st.just(r),
            st.builds(
                replace,
                st.just(r),
                prefix=st.text(max_size=8),
                prefix_tokens=st.integers(1, r.prompt_tokens),
                text_tokens=st.none() | st.integers(1, r.prompt_tokens),
            ),
        )
    ),
    min_size=1,
    max_size=8,
).map(lambda rows: sorted(rows, key=lambda r: r.arrival_s))


@given(requests)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_round_trip_is_exact(tmp_path, rows):
    path = tmp_path / "w.jsonl"
    write_workload(path, rows)
    assert read_workload(path) == rows


def written(tmp_path, *lines):
    path = tmp_path / "w.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_a_plain_line_is_best_effort(tmp_path):
    (request,) = read_workload(written(tmp_path, LINE))
    assert request == WorkloadRequest(1.0, 3, 4, Slo())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_s": math.nan}, "arrival_s must lie from 0"),
        ({"arrival_s": -1}, "arrival_s must lie from 0 to 1e.09, got -1"),
        ({"arrival_s": "0"}, "arrival_s"),
        ({"arrival_s": True}, "arrival_s"),
        ({"prompt_tokens": 0}, "prompt_tokens must be a whole number from 1"),
        ({"prompt_tokens": 2.5}, "prompt_tokens"),
        ({"output_tokens": -4}, "got -4"),
        ({"output_tokens": None}, "output_tokens"),
        ({"output_tokens": True}, "output_tokens"),
        ({"slo_ttft_ms": -1}, "slo_ttft_ms"),
        ({"slo_class": "a b"}, "slo_class"),
        ({"prompt": 5}, "prompt must be text"),
        ({"session": 5}, "session must be text"),
        ({"prefix": "a"}, "prefix and prefix_tokens come together"),
        ({"prefix_tokens": 2}, "prefix and prefix_tokens come together"),
        ({"prefix": "a", "prefix_tokens": 0}, "prefix_tokens must be a whole number from 1"),
        ({"prefix": "a", "prefix_tokens": 4}, "at most prompt_tokens, got 4 of 3"),
        ({"text_tokens": 4}, "text_tokens must be at most prompt_tokens, got 4 of 3"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path, changes, message):
    path = written(tmp_path, LINE, LINE | changes)
    with pytest.raises(InputError, match=message) as caught:
        read_workload(path)
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("name", ["arrival_s", "prompt_tokens", "output_tokens"])
def test_a_missing_key_is_named(tmp_path, name):
    line = {key: value for key, value in LINE.items() if key != name}
    with pytest.raises(InputError, match=f":1: {name} is required"):
        read_workload(written(tmp_path, line))


def test_unsorted_arrivals_are_refused(tmp_path):
    path = written(tmp_path, LINE, LINE | {"arrival_s": 0.5})
    with pytest.raises(InputError, match=r":2: arrival_s must not decrease, got 0.5 after 1"):
        read_workload(path)


@pytest.mark.parametrize("line", ["{", "[1]", "null", "nope"])
def test_a_line_that_is_no_object_is_refused(tmp_path, line):
    with pytest.raises(InputError, match=":2: "):
        read_workload(written(tmp_path, LINE, line))


def test_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_workload(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="at least one request"):
        read_workload(written(tmp_path))
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="not UTF-8"):
        read_workload(path)


def test_truncated_and_corrupt_gzip(tmp_path):
    whole = gzip.compress(b"".join(json.dumps(LINE).encode() + b"\n" for _ in range(2000)))
    path = tmp_path / "w.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="gzip"):
        read_workload(path)
    path.write_bytes(b"not gzip at all")
    with pytest.raises(InputError, match="not JSON"):
        read_workload(path)


@pytest.mark.parametrize(
    "name", ["slo_tft_ms", "slo_ttft", "ttft_ms", "TPOT_ms", "slo", "SLO_class", "slo_e2e_s", "e2e"]
)
def test_an_objective_under_another_name_is_refused(tmp_path, name):
    """Unread it would make its request best effort, and nothing would say so."""
    path = tmp_path / "w.jsonl"
    row = {"arrival_s": 0.0, "prompt_tokens": 1, "output_tokens": 1}
    path.write_text(json.dumps(row | {name: 500}) + "\n")
    with pytest.raises(InputError, match=f"w.jsonl:1: unknown key '{name}'; objectives and class"):
        read_workload(path)
    path.write_text(json.dumps(row | {"ttft_s": 0.1, "note": "x"}) + "\n")
    assert len(read_workload(path)) == 1  # what was measured, and others' keys


def test_messages_are_read_as_the_server_reads_them_and_halves_of_characters_are_none(tmp_path):
    path = tmp_path / "w.jsonl"
    row = {"arrival_s": 0.0, "prompt_tokens": 1, "output_tokens": 1}
    talk = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "a\ud83d"}]
    path.write_text(json.dumps(row | {"messages": talk, "task": "\ud800"}) + "\n")
    (request,) = read_workload(path)
    assert request.prompt == "<|system|>\nBe kind.\n<|user|>\na\ufffd"
    assert request.task == "\ufffd"
    for wrong in ("Hi", [], ["Hi"], [{"role": "martian", "content": "a"}]):
        path.write_text(json.dumps(row | {"messages": wrong}) + "\n")
        with pytest.raises(InputError, match="message"):
            read_workload(path)
