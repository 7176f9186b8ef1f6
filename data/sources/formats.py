"""The forms that sets of prompts and answers come in; each a short reader of one normal row.

OpenAI messages and fine-tuning files (preference files too), ShareGPT, LMSYS-Chat, WildChat,
Chatbot Arena, OASST trees, UltraChat, UltraFeedback, preference pairs (HH-RLHF transcripts too),
stored completions, OpenOrca, Alpaca, Dolly, and anything with a prompt beside an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from lengthwise.data.chat import rendered
from lengthwise.data.errors import InputError, shown
from lengthwise.data.sources.examples import (
    Example,
    Row,
    find,
    flat_example,
    text_of,
    turn_examples,
    turn_of,
)
from lengthwise.data.sources.names import ALIASES, CONVERSATIONS, WITH_CONTEXT

Found = Iterator[Example | None]
Reader = Callable[[Row, str], Found]

_TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def examples_of(row: Row, place: str) -> tuple[list[Example], int]:
    """The examples of a row in normal form, and how many of its turns were blank.

    InputError where the row breaks a rule, NoAnswerError where a prompt has no answer.
    """
    found = list(_reader(row)(row, place))
    examples = [example for example in found if example is not None]
    return examples, len(found) - len(examples)


def _reader(row: Row) -> Reader:
    return next((reader for holds, reader in _FORMS if holds(row)), _flat)


def _messages(row: Row, place: str) -> Found:
    """`messages`, `conversations` and the like; an answer beside them is their last turn."""
    name = next(n for n in CONVERSATIONS if isinstance(row.get(n), list))
    messages = row[name]
    system = find(row, "system")
    if isinstance(system, str) and system.strip() and not _opens_with_system(messages):
        messages = [{"role": "system", "content": system}, *messages]
    if not ends_with_answer(messages):
        answer = _answer(row)
        if answer is not None or find(row, "output_tokens") is not None:
            messages = [*messages, {"role": "assistant", "content": answer or ""}]
    tools = row.get("tools") or row.get("functions")
    return turn_examples(messages, row, place=place, tools=tools)


def _stored(row: Row, place: str) -> Found:
    """A request with the response to it, as gateways keep them."""
    body, reply = row["request"], row["response"]
    body = body.get("body", body)
    reply = reply.get("body", reply)
    usage = reply.get("usage") or {}
    for choice in reply["choices"]:
        message = choice.get("message") or {"role": "assistant", "content": choice.get("text")}
        inner = {
            **{k: v for k, v in row.items() if k not in ("request", "response")},
            **{"model": reply.get("model"), "finish_reason": choice.get("finish_reason")},
        }
        if len(reply["choices"]) == 1:
            inner["output_tokens"] = usage.get("completion_tokens")
            inner["prompt_tokens"] = None if "messages" in body else usage.get("prompt_tokens")
        inner = {k: v for k, v in inner.items() if v is not None}
        if isinstance(body.get("messages"), list):
            talk = [*body["messages"], message]
            yield from turn_examples(talk, inner, place=place, tools=body.get("tools"))
        else:
            yield flat_example(_prompt(body), text_of(message), inner)


def _preference(row: Row, place: str) -> Found:
    """OpenAI's preference files: `input` with messages, and two outputs."""
    asked = row["input"]
    for name in ("preferred_output", "non_preferred_output"):
        if isinstance(answer := row.get(name), list):
            messages = [*asked["messages"], *answer]
            yield from _last(messages, row, place, asked.get("tools"), len(asked["messages"]))


def _pairs(row: Row, place: str) -> Found:
    """`chosen` and `rejected`: texts, messages, or whole transcripts."""
    for name in ("chosen", "rejected"):
        answer = row.get(name)
        if isinstance(answer, list):
            prompt = row.get("prompt")
            asked = prompt if isinstance(prompt, list) else []
            if not asked and isinstance(prompt, str) and len(answer) == 1:
                asked = [{"role": "user", "content": prompt}]
            talk = answer if answer[: len(asked)] == asked else [*asked, *answer]
            yield from turn_examples(talk, row, place=place)
        elif isinstance(answer, str) and (talk := _transcript(answer)):
            yield from turn_examples(talk, row, place=place)
        elif isinstance(answer, str):
            yield from _answered(row, answer)


def _completions(row: Row, place: str) -> Found:
    """UltraFeedback: several models' answers to one instruction."""
    for completion in row["completions"]:
        answer = find(completion, "response")
        if not isinstance(answer, str) or not answer.strip():
            yield None
            continue
        own = {
            key: completion[key] for key in ("model", "custom_system_prompt") if key in completion
        }
        yield from _answered(row | own, answer)


def _arena(row: Row, place: str) -> Found:
    """Two models beside each other: whole conversations, or turns as JSON in text."""
    for side in "ab":
        own = {**row, "model": row.get(f"model_{side}", "unknown")}
        if isinstance(talk := row.get(f"conversation_{side}"), list):
            yield from turn_examples(talk, own, place=place)
            continue
        asked, answers = _texts(row.get("prompt")), _texts(row.get(f"response_{side}"))
        messages: list[Row] = []
        for question, answer in zip(asked, answers, strict=False):
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        yield from turn_examples(messages, own, place=place)


def _ultrachat(row: Row, place: str) -> Found:
    """`data`: questions and answers in turn, as texts."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(row["data"])]
    return turn_examples(messages, row, place=place)


def _tree(row: Row, place: str) -> Found:
    """OASST: a prompt with replies, which have replies; each answer with the path to it."""
    known = {"id": row.get("message_tree_id", place), "model": "people"}

    def walk(message: Row, path: list[Row]) -> Found:
        here = [*path, {"role": message.get("role"), "content": message.get("text")}]
        if message.get("role") == "assistant":
            yield from _last(here, known, place, None, len(path))
        for reply in message.get("replies") or ():
            yield from walk(reply, here)

    return walk(row["prompt"], [])


def _last(messages: list[Row], row: Row, place: str, tools: Any, start: int) -> Found:
    """The answers from position `start` on: those before it are other examples'."""
    earlier = sum(m.get("role") == "assistant" for m in messages[:start] if isinstance(m, dict))
    found = list(turn_examples(messages, row, place=place, tools=tools))
    return iter(found[earlier:])


def _flat(row: Row, _place: str) -> Found:
    """A prompt beside an answer, under any of their names."""
    return _answered(row, _answer(row))


def _answered(row: Row, answer: str | None) -> Found:
    prompt = _prompt(row)
    turns: list[tuple[str, str]] = []
    system = find(row, "system")
    if isinstance(system, str) and system.strip():
        turns.append(("system", system))
    for pair in row.get("history") or ():
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair):
            turns += [("user", pair[0]), ("assistant", pair[1])]
    tools = row.get("tools")
    yield flat_example(rendered([*turns, ("user", prompt)], tools), answer, row)


def _prompt(row: Row) -> str:
    """The prompt under its first name that holds one; blank is absent."""
    there = [alias for alias in ALIASES["prompt"] if not _is_blank(row.get(alias))]
    if not there:
        blank = next((alias for alias in ALIASES["prompt"] if alias in row), None)
        if blank is not None:
            raise InputError(f"{blank} must be text that is not blank, got {shown(row[blank])}")
        names = ", ".join(ALIASES["prompt"][:6])
        raise InputError(f"needs a prompt ({names}, ...), has {shown(list(row))}")
    name = there[0]
    text = _as_text(row[name], name)
    # Alpaca's and Dolly's second field; beside another name these words mean something else
    contexts = [row.get(alias) for alias in ALIASES["context"] if name in WITH_CONTEXT]
    context = next((c for c in contexts if isinstance(c, str) and c.strip()), None)
    return f"{text}\n\n{context}" if context else text


def _answer(row: Row) -> str | None:
    """The answer under its first name that holds one; None where there is none."""
    prompt = next((alias for alias in ALIASES["prompt"] if not _is_blank(row.get(alias))), None)
    names = [alias for alias in ALIASES["response"] if alias in row and alias != prompt]
    name = next((alias for alias in names if not _is_blank(row[alias])), None)
    if name is not None:
        return _as_text(row[name], name)
    return "" if names else None


def _as_text(value: Any, name: str) -> str:
    """Text, content parts, or one message as text; InputError for anything else."""
    if isinstance(value, str):
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(p, dict) and "text" in p for p in value)
    ):
        return text_of({"content": value})
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, dict) and "content" in value:
        return text_of(value)
    raise InputError(f"{name} must be text, got {shown(value)}")


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value == []


def _chat_prompt(row: Row, place: str) -> Found:
    """A prompt that is a list of messages, with an answer that is text or messages."""
    own = {key: value for key, value in row.items() if key != "prompt"}
    return _messages(own | {"messages": row["prompt"]}, place)


def _texts(value: Any) -> list[str]:
    """A list of texts, also one written as JSON; a text alone is a list of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    if isinstance(value, list):
        return [text if isinstance(text, str) else "" for text in value]
    return [] if value is None else [str(value)]


def _transcript(text: str) -> list[Row]:
    """The messages of a text of `Human:` and `Assistant:` parts; none for another text."""
    parts = _TRANSCRIPT.split(text)
    if len(parts) < 5 or parts[0].strip() or parts[1] != "Human":
        return []
    return [
        {"role": role.lower(), "content": said.strip()}
        for role, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _opens_with_system(messages: list[Any]) -> bool:
    first = messages[0] if messages else None
    return isinstance(first, dict) and first.get("role", first.get("from")) == "system"


def ends_with_answer(messages: list[Any]) -> bool:
    """Whether the last message is the model's, by the table of roles."""
    try:
        return bool(messages) and turn_of(messages[-1])[0] == "assistant"
    except InputError:
        return True  # told where the turns are read


def _lists_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) for m in value)


def _has_tree(row: Row) -> bool:
    return isinstance(row.get("prompt"), dict) and "text" in row["prompt"]


def _has_preference(row: Row) -> bool:
    asked = row.get("input")
    return isinstance(asked, dict) and isinstance(asked.get("messages"), list)


def _has_stored(row: Row) -> bool:
    body, reply = row.get("request"), row.get("response")
    if not (isinstance(body, dict) and isinstance(reply, dict)):
        return False
    inner = reply.get("body", reply)
    return isinstance(inner, dict) and _lists_messages(inner.get("choices"))


def _has_arena(row: Row) -> bool:
    return "conversation_a" in row or ("response_a" in row and "prompt" in row)


def _has_chat_prompt(row: Row) -> bool:
    asked = row.get("prompt") or ()
    return _lists_messages(asked) and any("role" in message for message in asked)


_FORMS: tuple[tuple[Callable[[Row], bool], Reader], ...] = (
    (_has_tree, _tree),
    (_has_preference, _preference),
    (_has_stored, _stored),
    (_has_arena, _arena),
    (lambda row: "chosen" in row, _pairs),
    (lambda row: _lists_messages(row.get("completions")), _completions),
    (lambda row: any(isinstance(row.get(name), list) for name in CONVERSATIONS), _messages),
    (lambda row: isinstance(row.get("data"), list), _ultrachat),
    (_has_chat_prompt, _chat_prompt),
)
