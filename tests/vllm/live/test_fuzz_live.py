"""A real server: what is malformed is its client's fault, and a prompt is shown nowhere."""

from __future__ import annotations

import gzip
import time

import httpx
import pytest
from echo_client import COMPLETIONS

from lengthwise.scheduler.serving.api.own_routes import (
    STATUS_PATH,
)

pytestmark = pytest.mark.vllm

MARKER = "zanzibar-marmalade-7731"


def test_a_real_server_shows_a_prompt_nowhere_but_in_the_log_that_was_asked_for(server):
    body = {"model": "tiny", "prompt": f"{MARKER} {MARKER}", "max_tokens": 4}
    xargs = {"vllm_xargs": {"slo_e2e_ms": 60_000}}
    assert httpx.post(server.url + COMPLETIONS, json=body | xargs, timeout=60).status_code == 200
    bad = body | {"vllm_xargs": {"slo_e2e_ms": "x"}, "temperature": "hot"}
    refusal = httpx.post(server.url + COMPLETIONS, json=bad, timeout=60)
    assert refusal.status_code == 400
    shown = [httpx.get(server.url + path, timeout=60).text for path in ("/metrics", STATUS_PATH)]
    assert MARKER not in "".join([refusal.text, *shown])
    assert MARKER not in server.server_log.read_text(errors="replace")


@pytest.mark.parametrize(
    "raw",
    [
        gzip.compress(b'{"model": "tiny", "prompt": "hi"}', mtime=0),
        '{"model": "tiny", "prompt": "hí"}'.encode("latin-1"),
        b'{"model": "tiny", "prompt": "hi", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "hi", "max_tokens": 1' + b"0" * 400 + b"}",
        b'{"model": "tiny", "prompt": "hi", "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"model": "tiny", "messages": 5, "prompt": {"a": 1}}',
        b'{"model": "tiny", "prompt": "' + b"word " * 1_500_000 + b'"}',
    ],
)
def test_a_real_server_answers_what_is_malformed_with_a_400(server, raw):
    began_s = time.monotonic()
    answer = httpx.post(
        server.url + COMPLETIONS, content=raw, timeout=60,
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert time.monotonic() - began_s < 20
    assert httpx.get(server.url + "/health", timeout=5).status_code == 200
