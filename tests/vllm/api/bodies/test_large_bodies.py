"""Large bodies are read as small ones are."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from echo_client import CHAT, COMPLETIONS, TABLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lengthwise.data.slo import SloTable
from lengthwise.scheduler.serving.api.body import large_body, request_body
from lengthwise.scheduler.serving.api.body.large_body import pieces, read_large, spliced
from lengthwise.scheduler.serving.api.body.request_body import MOST_INLINE_BYTES, parse_body
from lengthwise.scheduler.vllm_adapter.api.routes import READERS

SLOS = SloTable.from_dict(TABLE)

TOKENS = "/inference/v1/generate"

characters = st.sampled_from(['"', "\\", "é", "漢", "😀", "\ud83d", "\ude00", "\n", "a", "]", "}"])
texts = st.lists(characters, max_size=60).map("".join)
tokens = st.integers(0, 200_000)
contents = st.one_of(
    texts,
    st.none(),
    st.lists(
        st.one_of(
            st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
            st.fixed_dictionaries({"type": st.just("x"), "image_url": st.none()}),
            tokens,
        ),
        max_size=4,
    ),
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "odd"]), "content": contents}
    ),
    max_size=6,
)
bodies = st.fixed_dictionaries(
    {"model": st.just("m")},
    optional={
        "prompt": st.one_of(texts, st.lists(texts, max_size=6), st.lists(tokens, max_size=6)),
        "messages": st.one_of(messages, st.lists(messages, max_size=3)),
        "input": st.one_of(texts, messages),
        "instructions": texts,
        "tools": st.lists(st.fixed_dictionaries({"name": texts}), max_size=3),
        "vllm_xargs": st.dictionaries(
            st.sampled_from(["slo_e2e_ms", "pred_x", "lw_y", "osl", "mine"]),
            st.sampled_from([None, 5, 70.5, "9"]),
        ),
        "max_tokens": st.integers(1, 50),
        "min_tokens": st.integers(1, 50),
    },
)

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")


@pytest.fixture
def tiny_parts(monkeypatch):
    """Every body is large, every value of more than twelve bytes is read in parts."""
    monkeypatch.setattr(request_body, "MOST_INLINE_BYTES", 0)
    monkeypatch.setattr(large_body, "WHOLE_BYTES", 12)
    monkeypatch.setattr(request_body, "WHOLE_BYTES", 10**6)


@settings(max_examples=150, deadline=None, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(bodies, st.sampled_from(sorted(READERS)), st.sampled_from([None, 1]), st.booleans(),
       st.sampled_from(ENCODINGS))  # fmt: skip
def test_a_large_body_is_read_as_a_small_one(tiny_parts, body, path, indent, ascii_only, encoding):
    raw = json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode(encoding, "surrogatepass")
    found = parse_body(raw, {}, SLOS, READERS[path])
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(request_body, "MOST_INLINE_BYTES", 10**9)
        wanted = parse_body(raw, {}, SLOS, READERS[path])
    assert json.dumps(json.loads(found.raw)) == json.dumps(json.loads(wanted.raw))
    assert (found.raw is raw) == (wanted.raw is raw)
    for name in ("slo", "tenant", "prompts", "osl", "max_tokens", "fixed_tokens", "is_open"):
        assert getattr(found, name) == getattr(wanted, name), name


@pytest.mark.parametrize("unit", ["word ", "é", "漢字 ", "😀", "\\", '"', "\n", "\ud83d", "\x00"])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_both_ends_of_a_long_text_are_those_of_the_whole(unit, ascii_only):
    text = "".join(f"{unit}{i}" for i in range(200_000 // len(unit)))
    for body, path in (({"prompt": text}, COMPLETIONS), ({"prompt": [text, "b"]}, COMPLETIONS),
                       ({"messages": [{"role": "user", "content": text}] * 2}, CHAT)):  # fmt: skip
        raw = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        wanted = READERS[path](body).prompts
        found = parse_body(raw, {}, SLOS, READERS[path]).prompts
        assert found == tuple(request_body._shortened(one) for one in wanted)


def test_of_many_messages_the_first_and_the_last_are_read():
    talk = [{"role": "user", "content": f"Message {i} of a long talk."} for i in range(50_000)]
    tools = [{"name": f"t{i}"} for i in range(9_000)]
    raw = json.dumps({"messages": talk, "tools": tools}).encode()
    (found,) = parse_body(raw, {}, SLOS, READERS[CHAT]).prompts
    (wanted,) = READERS[CHAT](json.loads(raw)).prompts
    assert found == request_body._shortened(wanted)


WHERE = {
    "the body": (COMPLETIONS, "{%s}"),
    "its arguments": (CHAT, '{"messages": [], "vllm_xargs": {%s}}'),
    "its parameters": (TOKENS, '{"token_ids": [1], "sampling_params": {%s}}'),
    "arguments of theirs": (TOKENS, '{"sampling_params": {"n": 1, "extra_args": {%s}}}'),
    "a message": (CHAT, '{"messages": [{"role": "user", %s}]}'),
}
OURS = {
    "prompt": '"What is it, %d?"',
    "content": '"What is it, %d?"',
    "max_tokens": "7%d",
    "min_tokens": "7%d",
    "ignore_eos": "true",
    "slo_e2e_ms": "7%d",
    "slo_class": '"chat"',
    "tenant": '"me-%d"',
    "osl": "9%d",
    "vllm_xargs": '{"slo_ttft_ms": 8%d}',
    "extra_args": '{"slo_tpot_ms": 9%d}',
}


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.sampled_from(sorted(WHERE)),
    st.lists(st.tuples(st.sampled_from(sorted(OURS)), st.integers(0, 12_000)), max_size=6),
    st.integers(1, 12_000),
    st.sampled_from(['""', '"' + "x" * 40 + '"']),
    st.booleans(),
)
def test_members_of_ours_are_read_wherever_they_stand(where, ours, others, value, escaped):
    """Among thousands of others, however they are written; of one said twice the last counts."""

    def written(name):
        return "".join(f"\\u{ord(letter):04x}" for letter in name) if escaped else name

    members = [f'"a{i}": {value}' for i in range(others)]
    for nth, (name, place) in enumerate(ours):
        member = f'"{written(name)}": {OURS[name].replace("%d", str(nth))}'
        members.insert(min(place, len(members)), member)
    path, whole = WHERE[where]
    raw = (whole % ", ".join(members)).encode()
    with pytest.MonkeyPatch.context() as limit:
        limit.setattr(request_body, "MOST_INLINE_BYTES", 10**9)
        wanted = parse_body(raw, {}, SLOS, READERS[path])
        limit.setattr(request_body, "MOST_INLINE_BYTES", 0)
        found = parse_body(raw, {}, SLOS, READERS[path])
    for name in ("slo", "tenant", "prompts", "osl", "max_tokens", "fixed_tokens"):
        assert getattr(found, name) == getattr(wanted, name), name


def test_every_member_that_a_route_asks_for_is_among_those(monkeypatch):
    asked = set()

    class Asked(dict):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

        def __contains__(self, key):
            asked.add(key)
            return super().__contains__(key)

    for reader in READERS.values():
        for body in ({}, {"messages": []}):
            parts = reader(Asked(body), lambda _: None)
            request_body._fixed(replace(parts, sampling=Asked()))
        asked.update(parts.limits)
    assert asked <= large_body.NAMED


def test_an_objective_behind_large_arguments_of_others_is_read():
    others = {f"a{i}": "x" * 15_000 for i in range(40)}
    body = {"prompt": "a", "vllm_xargs": others | {"slo_e2e_ms": 70}}
    assert parse_body(json.dumps(body).encode(), {}, SLOS, READERS[COMPLETIONS]).slo.e2e_s == 0.07


def test_an_image_costs_no_room_and_its_text_is_read():
    picture = {"type": "image_url", "image_url": {"url": "data:," + "A" * 400_000}}
    parts = [picture] * 5 + [{"type": "text", "text": "What is on these?"}]
    raw = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    assert parse_body(raw, {}, SLOS, READERS[CHAT]).prompts == ("What is on these?",)


@pytest.mark.parametrize(
    "broken",
    [b'{"prompt": %s', b'{"prompt": %s}}', b'[%s]', b'{"prompt" %s}', b'{prompt: %s}',
     b'{"prompt": %s} x', b'{"prompt": %s,}', b'{"a": "\\', b"", b"{", b'{"prompt": %s, "b": tru}'],
)  # fmt: skip
def test_what_is_no_object_is_left_to_vllm(broken):
    raw = broken.replace(b"%s", b'"' + b"x" * (2 * MOST_INLINE_BYTES) + b'"')
    parsed = parse_body(raw, {"x-slo-e2e-ms": "70"}, SLOS, READERS[COMPLETIONS])
    assert parsed.raw is raw
    assert (parsed.prompts, parsed.slo.e2e_s) == ((), 0.07)


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:\\ u1dD8', max_size=40).map(str.encode))
def test_any_bytes_can_be_looked_through(raw):
    found = read_large(raw)
    assert found is None or isinstance(found.body, dict)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_only_the_arguments_are_rewritten(mark):
    text = "x" * (3 * MOST_INLINE_BYTES)
    raw = mark + b'{"a": 1.50, "vllm_xargs": {"osl": null, "pred_x": 3, "mine": 1}, "prompt": "'
    raw += text.encode() + b'"}'
    parsed = parse_body(raw, {}, SLOS, READERS[COMPLETIONS])
    assert parsed.raw == raw.replace(b'{"osl": null, "pred_x": 3, "mine": 1}', b'{"mine": 1}')


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_large_body_in_any_encoding_of_json_is_read_and_goes_on_as_it_came(encoding):
    text = "漢字 😀 " * MOST_INLINE_BYTES  # pieces end within characters
    body = {"prompt": text, "max_tokens": 5, "vllm_xargs": {"slo_e2e_ms": 70, "mine": 1}}
    raw = json.dumps(body, ensure_ascii=False).encode(encoding)
    parsed = parse_body(raw, {}, SLOS, READERS[COMPLETIONS])
    assert parsed.raw is raw
    assert (parsed.slo.e2e_s, parsed.max_tokens) == (0.07, 5)
    assert parsed.prompts == (request_body._shortened(text),)
    forged = json.dumps({**body, "vllm_xargs": {"pred_x": 3, "mine": 1}}, ensure_ascii=False)
    parsed = parse_body(forged.encode(encoding), {}, SLOS, READERS[COMPLETIONS])
    assert json.loads(parsed.raw) == {**body, "vllm_xargs": {"mine": 1}}


@pytest.mark.parametrize("encoding", ENCODINGS[2:])
def test_a_large_body_cut_within_a_character_is_left_to_vllm(encoding):
    raw = json.dumps({"prompt": "x" * MOST_INLINE_BYTES}).encode(encoding)[:-1]
    parsed = parse_body(raw, {"x-slo-e2e-ms": "70"}, SLOS, READERS[COMPLETIONS])
    assert parsed.raw is raw
    assert (parsed.prompts, parsed.slo.e2e_s) == ((), 0.07)


@given(st.binary(max_size=50), st.data())
def test_pieces_are_the_whole(raw, data):
    start = data.draw(st.integers(0, len(raw)))
    stop = data.draw(st.integers(start, len(raw)))
    assert b"".join(pieces(raw, start, stop)) == raw[start:stop]
    assert spliced(raw, (start, stop), b"new") == raw[:start] + b"new" + raw[stop:]


def test_reading_takes_no_longer_than_so(monkeypatch):
    """Ten seconds of nothing but brackets would be a denial of service: it is read once a level."""
    raw = b'{"messages":' + b"[" * 10**6 + b"]" * 10**6 + b"}"
    read_large(b"{}")
    began_s = time.process_time()
    parse_body(raw, {}, SLOS, READERS[CHAT])
    assert time.process_time() - began_s < 2.0  # a twentieth of that on a quiet machine
