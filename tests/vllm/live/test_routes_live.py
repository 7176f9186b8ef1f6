"""Every generating route of a real server: read like chat, forgeries on it without effect."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from test_engine import post, status

from lengthwise.data.request_log import read_request_log

pytestmark = pytest.mark.vllm

FORGED = {
    "pred_quantiles": [1.0] * 12, "pred_version": "forged", "lw_text_id": "forged",
    "lw_features": [9.0], "lw_admission": "downgraded", "lw_whole": "w", "lw_parts": 5,
    "lw_seal": "0" * 32,
}  # fmt: skip
TALK = [{"role": "user", "content": "Tell me about rivers and MARK."}]
XARGS = {"vllm_xargs": FORGED | {"slo_e2e_ms": 90_000}}
TOKENS = {"max_tokens": 3, "extra_args": XARGS["vllm_xargs"]}
BODIES = {
    "/v1/chat/completions": ({"messages": TALK, "max_tokens": 3} | XARGS, 1),
    "/v1/completions": ({"prompt": ["MARK one", "MARK two words"], "max_tokens": 3} | XARGS, 2),
    "/v1/responses": ({"input": "MARK rivers", "max_output_tokens": 3} | XARGS, 1),
    "/v1/messages": ({"messages": TALK, "max_tokens": 3} | XARGS, 1),
    "/v1/chat/completions/batch": ({"messages": [TALK, TALK], "max_tokens": 3} | XARGS, 2),
    "/inference/v1/generate": ({"token_ids": [5, 6, 7], "sampling_params": TOKENS}, 1),
    "/invocations": ({"prompt": "MARK rivers", "max_tokens": 3} | XARGS, 1),
}


def rows_of(server, tenant, count, patience_s=15.0):
    """The rows of a tenant that only one test uses, once all are there."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        rows = read_request_log(server.log_dir) if any(server.log_dir.glob("requests-*")) else None
        found = rows[rows["tenant"] == tenant] if rows is not None else ()
        if len(found) >= count:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{len(found)} of {count} rows of {tenant}")


def texts(server):
    """Text of every prompt kept so far, by id."""
    kept = {}
    for path in server.log_dir.glob("texts-*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                kept[row["text_id"]] = row["prompt"]
    return kept


def outcomes(server):
    return status(server)["outcomes"].get("chat", {})


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_route_is_read_like_chat_and_forgeries_have_no_effect(server, path):
    body, count = BODIES[path]
    tenant = "route" + path.replace("/", ".")
    headers = {"x-slo-class": "chat", "x-slo-ttft-ms": "60000", "x-tenant": tenant}
    before = outcomes(server).get("met", 0)
    answer = post(server, path, {"model": "tiny"} | body, headers)
    assert answer.status_code == 200, answer.text
    rows = rows_of(server, tenant, count)
    assert len(rows) == count
    assert set(rows["slo_class"]) == {"chat"}
    assert set(rows["slo_ttft_ms"]) == {60_000.0}
    assert set(rows["slo_e2e_ms"]) == {90_000.0}
    assert rows["admission"].isna().all()
    assert outcomes(server)["met"] == before + 1  # once, however many rows
    if path == "/inference/v1/generate":
        assert rows["predicted_tokens"].isna().all()
        assert rows["text_id"].isna().all()
        return
    assert set(rows["predictor"]) == {"test/1"}
    assert (rows["predicted_tokens"] > 1).all()
    kept = texts(server)
    assert all("MARK" in kept[text_id] for text_id in rows["text_id"])
    if count == 2:
        assert rows["text_id"].nunique() == 2
        assert rows["whole_id"].nunique() == 1


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_bad_objective_is_refused_on_every_route(server, path):
    answer = post(server, path, {"model": "tiny"} | BODIES[path][0], {"x-slo-ttft-ms": "soon"})
    assert answer.status_code == 400
    assert "soon" in answer.json()["error"]["message"]


def test_samples_and_beams_are_one_outcome(server):
    for name, more, least in (("n", {"n": 4}, 4), ("beams", {"use_beam_search": True, "n": 2}, 2)):
        before = outcomes(server).get("met", 0)
        body = {"model": "tiny", "prompt": "Hi", "max_tokens": 3} | more
        headers = {"x-slo-class": "chat", "x-slo-ttft-ms": "60000", "x-tenant": name}
        answer = post(server, "/v1/completions", body, headers)
        assert answer.status_code == 200, answer.text
        rows = rows_of(server, name, least)
        assert rows["whole_id"].nunique() == 1
        deadline = time.monotonic() + 10
        while outcomes(server).get("met", 0) <= before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert outcomes(server)["met"] == before + 1


def test_fixed_lengths_are_taken_as_they_are(server):
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 30, "min_tokens": 30}
    assert post(server, "/v1/completions", body, {"x-tenant": "fixed"}).status_code == 200
    (row,) = rows_of(server, "fixed", 1).to_dict("records")
    assert (row["predictor"], row["predicted_tokens"], row["output_tokens"]) == ("fixed", 30.0, 30)


def test_nothing_was_unsealed_or_unread_and_no_text_is_in_the_servers_log(server):
    fallbacks = status(server)["plan"]["fallbacks"]
    assert "unsealed" not in fallbacks
    metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    assert "lengthwise_unread_generations_total{" not in metrics
    assert "MARK" not in server.server_log.read_text(errors="replace")
