"""The forms that sets of prompts and answers come in; each a short reader of one normal row.

OpenAI messages and fine-tuning files (preference files too), ShareGPT, LMSYS-Chat, WildChat,
Chatbot Arena, OASST trees, UltraChat, UltraFeedback, preference pairs (HH-RLHF transcripts too),
stored completions, OpenOrca, Alpaca, Dolly, and anything with a prompt beside an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.skipped import NoAnswerError
from lengthwise.data.sources.examples import (
    Example,
    Row,
    answer_text,
    find,
    turn_examples,
    turn_of,
)
from lengthwise.data.sources.forms.conversation_forms import with_messages
from lengthwise.data.sources.forms.envelopes import (
    REPLIES,
    REQUESTS,
    answers_in,
    asked,
    ending_of,
    failed,
    reply_of,
    request_of,
    tokens_of,
    usage_holder,
)
from lengthwise.data.sources.forms.flat_rows import Found, answer_of, answered, flat_row
from lengthwise.data.sources.names import CONVERSATIONS

Reader = Callable[[Row, str], Found]

_TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def examples_of(row: Row, place: str) -> tuple[list[Example], int]:
    """The examples of a row in normal form, and how many of its turns were blank.

    InputError where the row breaks a rule, NoAnswerError where a prompt has no answer.
    """
    row = with_messages(row)
    found = list(_reader(row)(row, place))
    examples = [example for example in found if example is not None]
    return examples, len(found) - len(examples)


def _reader(row: Row) -> Reader:
    return next((reader for holds, reader in _FORMS if holds(row)), flat_row)


def _messages(row: Row, place: str) -> Found:
    """`messages`, `conversations` and the like; an answer beside them is their last turn."""
    name = next(n for n in CONVERSATIONS if isinstance(row.get(n), list))
    messages = row[name]
    system = find(row, "system")
    if isinstance(system, str) and system.strip() and not _opens_with_system(messages):
        messages = [{"role": "system", "content": system}, *messages]
    if not ends_with_answer(messages):
        answer = answer_of(row)
        if answer is not None or find(row, "output_tokens") is not None:
            messages = [*messages, {"role": "assistant", "content": answer or ""}]
    tools = row.get("tools") or row.get("functions")
    counts = tokens_of(row) if find(row, "output_tokens") is None else {}
    return turn_examples(messages, row | _of_answer(counts), place=place, tools=tools)


def _stored(row: Row, place: str) -> Found:
    """A request with the response to it, as gateways and tracers keep them."""
    reply, body = reply_of(row), request_of(row) or asked(row)
    if body is None:
        raise InputError(f"needs the request beside its response, has {shown(list(row))}")
    answers, holder = answers_in(reply), usage_holder(reply)
    counts = (tokens_of(holder) or tokens_of(row)) if len(answers) == 1 else {}
    messages, model = body.get("messages"), holder.get("model") or find(row, "model")
    own = {name: value for name, value in row.items() if name not in (*REQUESTS, *REPLIES)}
    for number, answer in enumerate(answers):
        said = {"model": model, "finish_reason": answer.ending or ending_of(holder)}
        inner = own | {name: value for name, value in said.items() if value is not None}
        if isinstance(messages, list):
            talk, start = [*messages, answer.message], len(messages) if number else 0
            yield from _last(talk, inner | _of_answer(counts), place, body.get("tools"), start)
        else:
            yield from answered(body | inner | counts, answer_text(answer.message))


def _of_answer(counts: Row) -> Row:
    """The answer's count: a conversation's prompt was counted with the server's own template."""
    return {name: count for name, count in counts.items() if name == "output_tokens"}


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
            yield from answered(row, answer)


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
        yield from answered(row | own, answer)


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


def _chat_prompt(row: Row, place: str) -> Found:
    """A prompt that is a list of messages, with an answer that is text or messages."""
    name = _chat_prompt_name(row) or "prompt"
    own = {key: value for key, value in row.items() if key != name}
    return _messages(own | {"messages": row[name]}, place)


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
    tree = row.get("prompt")
    return isinstance(tree, dict) and "text" in tree and ("replies" in tree or "role" in tree)


def _has_preference(row: Row) -> bool:
    asked = row.get("input")
    two = "preferred_output" in row or "non_preferred_output" in row
    return two and isinstance(asked, dict) and isinstance(asked.get("messages"), list)


def _has_stored(row: Row) -> bool:
    if reply_of(row) is not None:
        return True
    if (error := failed(row)) is not None:
        raise NoAnswerError(f"the response is an error, got {shown(error)}")
    return False


def _has_arena(row: Row) -> bool:
    return "conversation_a" in row or ("response_a" in row and "prompt" in row)


def _has_chat_prompt(row: Row) -> bool:
    return _chat_prompt_name(row) is not None


def _chat_prompt_name(row: Row) -> str | None:
    for name in ("prompt", "input", "inputs", "question", "instruction", "query"):
        talk = row.get(name)
        if _lists_messages(talk) and any("role" in message for message in talk or ()):
            return name
    return None


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
