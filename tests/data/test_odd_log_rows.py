"""Whatever one row of a request log holds, every reader of logs reads the others and counts it."""

from __future__ import annotations

import json

import pytest

from lengthwise.data.describe import describe
from lengthwise.data.request_log import log_batches
from lengthwise.data.request_log.played import logged_workload
from lengthwise.data.sources.load import load_table
from lengthwise.data.workload import write_workload

HUGE = 10**400
ODD = {  # what stands in the row, and the rule that leaves it out; None: it is read
    "more tokens than there are": ({"output_tokens": 10**8}, "output_tokens must be a whole"),
    "an answer beyond 64 bits": ({"output_tokens": HUGE}, "output_tokens must be a whole"),
    "a prompt beyond 64 bits": ({"prompt_tokens": 10**25}, "prompt_tokens must be a whole"),
    "a limit beyond 64 bits": ({"max_tokens": 10**30}, None),
    "a class with a blank": ({"slo_class": "bad class!"}, "slo_class must be a class's name"),
    "a class of 300 letters": ({"slo_class": "x" * 300}, "slo_class must be a class's name"),
    "half a character as class": ({"slo_class": "a\ud800"}, "slo_class must be a class's name"),
    "an empty class": ({"slo_class": ""}, None),
    "half a character in a prompt": ({"prompt": "a\ud83d b"}, None),
    "half a character in an id": ({"request_id": "x\udc00"}, None),
    "half a character as predictor": ({"predictor": "\ud800"}, None),
    "features beyond 32 bits": ({"features": [1e299, 1.0]}, "features must be a list of numbers"),
    "a null among features": ({"features": [None, 1.0]}, "features must be a list of numbers"),
    "quantiles of nothing": ({"quantiles": {"0.1": None, "0.9": None}}, "quantiles must be"),
    "quantiles of text": ({"quantiles": {"0.1": "x", "0.9": 3.0}}, "quantiles must be"),
    "quantiles beyond a float": ({"quantiles": {"0.1": HUGE, "0.9": 3}}, "quantiles must be"),
    "a length below nothing": ({"predicted_tokens": -5.0}, "predicted_tokens must be tokens"),
    "a length beyond reason": ({"predicted_tokens": 1e200}, "predicted_tokens must be tokens"),
    "milliseconds": ({"arrival_unix_s": 1.7e12}, "arrival_unix_s must be seconds"),
    "the end of time": ({"arrival_unix_s": 1e299}, "arrival_unix_s must be seconds"),
    "before 1970": ({"arrival_unix_s": -1e18}, "arrival_unix_s must be seconds"),
}


def good(number):
    return {
        "request_id": f"r{number}", "status": "finished", "arrival_unix_s": 1.7e9 + number,
        "slo_class": "chat", "prompt_tokens": 5, "output_tokens": 7, "predictor": "m@1",
        "predicted_tokens": 6.0, "quantiles": {"0.1": 1.0, "0.9": 9.0}, "met": True,
        "features": [1.0, 2.0], "feature_contract": "v1", "prompt": f"question {number}",
    }  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_an_odd_row_is_read_or_counted_by_every_reader(tmp_path, what):
    changes, rule = ODD[what]
    rows = [good(i) for i in range(6)]
    rows.insert(3, good(6) | changes)
    log = tmp_path / "log"
    log.mkdir()
    (log / "requests-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = 7 if rule is None else 6

    table = load_table(str(log))
    assert len(table) == kept
    assert [s["reason"].startswith(rule) for s in table.attrs["skipped"]] == [True] * (7 - kept)
    described = describe(str(log))
    json.dumps(described, allow_nan=False).encode()
    assert described["rows"] == kept
    assert described["span_s"] <= 7
    requests, skipped = logged_workload(log, with_prompts=True)
    write_workload(tmp_path / "w.jsonl", requests)
    assert (len(requests), skipped.rows) == (kept, 7 - kept)
    assert sum(len(batch) for batch in log_batches(log, 4)) == kept
