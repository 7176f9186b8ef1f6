"""Every route of the installed server that ends in a generation: read, or named as unread."""

from __future__ import annotations

import inspect
import json
import os
import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from echo_client import CHAT, COMPLETIONS, LEVELS, Client, WordPredictor
from prometheus_client import REGISTRY
from vllm_app import vllm_app

from lengthwise.scheduler.vllm_adapter.api.routes import HEADERS_ONLY, READERS

SERVING = Path(__file__).parents[3] / "docs" / "serving.md"
RESPONSES, MESSAGES, BATCH = "/v1/responses", "/v1/messages", "/v1/chat/completions/batch"
GENERATE, INVOCATIONS, COHERE = "/inference/v1/generate", "/invocations", "/cohere/v2/chat"

# POST routes of vLLM's server that start no sequence.
OTHERS = {
    "/abort_requests", "/classify", "/collective_rpc", "/detokenize", "/finish_weight_update",
    "/inference/v1/abort_requests", "/init_weight_transfer_engine", "/is_scaling_elastic_ep",
    "/pause", "/ping", "/pooling", "/release_kv_cache_memory", "/rerank", "/reset_encoder_cache",
    "/reset_mm_cache", "/reset_prefix_cache", "/resume", "/scale_elastic_ep", "/score",
    "/shutdown_weight_transfer_engine", "/sleep", "/start_draft_weight_update", "/start_profile",
    "/start_weight_update", "/stop_profile", "/tokenize", "/update_weight_version",
    "/update_weights", "/v1/chat/completions/derender", "/v1/chat/completions/render",
    "/v1/completions/derender", "/v1/completions/render", "/v1/embeddings",
    "/v1/load_lora_adapter", "/v1/messages/count_tokens", "/v1/messages/render", "/v1/rerank",
    "/v1/responses/render", "/v1/responses/{response_id}/cancel", "/v1/score",
    "/v1/unload_lora_adapter", "/v2/embed", "/v2/rerank", "/wake_up", "/weight_checker",
    "/adapters", "/cohere/v2/embed",
}  # fmt: skip


@lru_cache
def server_routes() -> dict[str, set[str]]:
    """Path -> methods of vLLM's own server, its developers' routes and all tasks included."""
    before = os.environ.get("VLLM_SERVER_DEV_MODE")
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    try:
        tasks = ("generate", "transcription", "embed", "score", "classify")
        app = vllm_app(tasks, tokens_only=True, enable_tokenizer_info_endpoint=True)
    finally:
        if before is None:
            del os.environ["VLLM_SERVER_DEV_MODE"]
    found: dict[str, set[str]] = {}
    for route in app.routes:
        found.setdefault(route.path, set()).update(getattr(route, "methods", None) or ())
    return found


def test_the_installed_servers_routes_are_all_known():
    """A new one fails here: it gets a reader, a place in HEADERS_ONLY, or a line in OTHERS."""
    posts = {path for path, methods in server_routes().items() if "POST" in methods}
    assert posts - set(READERS) - HEADERS_ONLY - OTHERS == set()
    missing = {COMPLETIONS, CHAT, RESPONSES, MESSAGES, BATCH, GENERATE, INVOCATIONS} - posts
    assert missing == set()


def test_the_documents_table_is_the_code():
    rows = re.findall(r"^\| `POST (\S+)` \| ([^|]+) \|", SERVING.read_text(), re.MULTILINE)
    read = {path for path, how in rows if how.strip() == "body and headers"}
    headers_only = {path for path, how in rows if how.strip() == "headers"}
    assert (read, headers_only) == (set(READERS), set(HEADERS_ONLY))


def text(content):
    return [{"role": "user", "content": content}]


# route, body, the texts that are predicted on, where the extra arguments stand
BODIES = [
    (COMPLETIONS, {"prompt": "one two"}, ["one two"]),
    (CHAT, {"messages": text("one two")}, ["one two"]),
    (CHAT, {"messages": text([{"type": "text", "text": "a b"}, {"type": "image_url"}])}, ["a b"]),
    (BATCH, {"messages": [text("one"), text("one two")]}, ["one", "one two"]),
    (RESPONSES, {"input": "one two"}, ["one two"]),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a b"}]}]},
     ["a b"]),
    (RESPONSES, {"instructions": "be brief", "input": "a"},
     ["<|system|>\nbe brief\n<|user|>\na"]),
    (RESPONSES, {"input": [*text("a"), {"type": "function_call_output", "output": "7"}]},
     ["<|user|>\na\n<|tool|>\n7"]),
    (MESSAGES, {"messages": text("one two"), "max_tokens": 9}, ["one two"]),
    (MESSAGES, {"system": "be brief", "messages": text([{"type": "text", "text": "a"}])},
     ["<|system|>\nbe brief\n<|user|>\na"]),
    (MESSAGES, {"messages": text([{"type": "tool_result", "content": "7"}])}, ["7"]),
    (INVOCATIONS, {"messages": text("one two")}, ["one two"]),
    (INVOCATIONS, {"prompt": "one two"}, ["one two"]),
    (COHERE, {"messages": text("one two")}, ["one two"]),
    (GENERATE, {"token_ids": [1, 2, 3], "sampling_params": {}}, []),
]  # fmt: skip
ids = [f"{path}-{index}" for index, (path, _, _) in enumerate(BODIES)]


@pytest.mark.parametrize(("path", "body", "texts"), BODIES, ids=ids)
def test_a_route_is_read_like_chat(path, body, texts):
    """SLO by header and body, tenant, a prediction of every text."""
    predictor = WordPredictor()
    client = Client(predictor, predictor_version="v1")
    said = {"slo_e2e_ms": 9000, "mine": 1}
    body = body | (
        {"sampling_params": {"extra_args": said}} if path == GENERATE else {"vllm_xargs": said}
    )
    headers = {"x-slo-class": "chat", "x-slo-ttft-ms": "700", "x-tenant": "t1"}
    told = client.told(body, headers, path)
    assert [asked for call in predictor.calls for asked in call] == texts
    assert len(told) == max(1, len(texts))
    for index, one in enumerate(told):
        assert one["mine"] == 1
        assert (one["slo_e2e_ms"], one["slo_ttft_ms"]) == (9000.0, 700.0)
        assert (one["slo_class"], one["tenant"]) == ("chat", "t1")
        if texts:
            words = len(texts[index].split())
            assert one["pred_quantiles"] == pytest.approx([10 * words * (1 + q) for q in LEVELS])
            assert one["pred_version"] == "v1"


EARLIER = SimpleNamespace(
    type="message", content=[SimpleNamespace(text="Paris."), SimpleNamespace(refusal="no")]
)
KEPT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Capital?"}]


@pytest.mark.parametrize(
    ("kept", "output", "text"),
    [
        (KEPT, [SimpleNamespace(type="reasoning", content=None), EARLIER],
         "<|user|>\nCapital?\n<|assistant|>\nParis.\n<|user|>\nAnd of Spain?"),
        (KEPT, [], "<|user|>\nCapital?\n<|user|>\nAnd of Spain?"),
        (None, [EARLIER], None),
        ([object()], [EARLIER], None),
    ],
)  # fmt: skip
def test_the_text_of_an_earlier_response_is_read_where_the_server_keeps_it(kept, output, text):
    predictor = WordPredictor()
    client = Client(predictor)
    handler = SimpleNamespace(
        msg_store={} if kept is None else {"resp_1": kept},
        response_store={"resp_1": SimpleNamespace(output=output)},
    )
    client.app.state.openai_serving_responses = handler
    before = unread("earlier response")
    client.told({"input": "And of Spain?", "previous_response_id": "resp_1"}, path=RESPONSES)
    assert predictor.calls == [[text or "And of Spain?"]]
    assert unread("earlier response") - before == (text is None)


def test_the_server_keeps_responses_where_we_look():
    """Of the installed one, by the names of its own fields."""
    source = inspect.getsource(import_module("vllm.entrypoints.openai.responses.serving"))
    assert "self.msg_store" in source
    assert "self.response_store" in source


@pytest.mark.parametrize(("path", "body", "texts"), BODIES, ids=ids)
def test_a_bad_objective_is_a_400_and_a_hopeless_request_a_503_everywhere(path, body, texts):
    answer = Client().post(path, body, {"x-slo-ttft-ms": "soon"})
    assert answer.status_code == 400
    assert "soon" in answer.json()["error"]["message"]
    client = Client(admission={"mode": "shed", "max_share": 1.0})
    client.core.answer = {"action": "shed", "retry_after_s": 3.0}
    assert client.post(path, body, {"x-slo-ttft-ms": "900"}).status_code == 503
    assert client.started == []
    ((method, question),) = client.core.asked
    assert (method, question["xargs"]["slo_ttft_ms"]) == ("lengthwise_admit", 900.0)


@pytest.mark.parametrize("path", sorted(READERS))
@pytest.mark.parametrize(
    "body",
    [{}, {"messages": 5, "prompt": {"a": 1}, "input": 3, "sampling_params": 4, "tools": "x"},
     {"messages": [None, 3, {"role": 4, "content": [None, {"text": 5}]}], "system": [3, {}]},
     {"messages": [[None]], "input": [None, {"type": "function_call"}], "instructions": {}},
     {"prompt": [None, 3, "x"], "prompt_embeds": 3, "max_tokens": "x", "stop": 3},
     {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{}, 3]}]}]}],
)  # fmt: skip
def test_a_malformed_body_is_vllms_to_refuse(path, body):
    raw = json.dumps(body).encode()
    seen = []

    async def inner(scope, receive, send):
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 422, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = Client()
    client.asgi.app = inner
    assert client.call("POST", path, content=raw).status_code == 422
    assert seen == [raw]


def unread(route):
    return REGISTRY.get_sample_value("lengthwise_unread_generations_total", {"route": route}) or 0


def test_a_route_of_a_later_server_is_counted_and_passes_without_private_keys():
    client = Client(WordPredictor())
    before = unread("/v1/new")
    forged = {"pred_quantiles": [1.0] * 12, "lw_text_id": "x", "slo_e2e_ms": 500, "mine": 1}
    body = {"prompt": "hi", "vllm_xargs": forged}
    answer = client.post("/v1/new", body, {"x-slo-ttft-ms": "soon"})
    assert answer.json()["told"] == [{"slo_e2e_ms": 500, "mine": 1}]
    assert unread("/v1/new") == before + 1
    client.told({"prompt": "hi"})
    assert unread(COMPLETIONS) == 0


def test_only_the_headers_of_a_form_are_read():
    client = Client(WordPredictor())
    headers = {"x-slo-class": "chat", "x-tenant": "t1"}
    (told,) = client.told({"file": "x"}, headers, "/v1/audio/transcriptions")
    assert (told["slo_class"], told["slo_ttft_ms"], told["tenant"]) == ("chat", 3000.0, "t1")
    answer = client.post("/v1/audio/transcriptions", {}, {"x-slo-class": "vip"})
    assert answer.status_code == 400
