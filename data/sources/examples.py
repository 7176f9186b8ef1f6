"""A prompt with the length of its answer, as taken out of a row of any form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lengthwise.data.chat import content_text, rendered, role_of
from lengthwise.data.errors import InputError, shown
from lengthwise.data.skipped import NoAnswerError
from lengthwise.data.slo import check_class_name, is_class_name
from lengthwise.data.sources.forms.envelopes import ending_of, was_cut
from lengthwise.data.sources.names import ALIASES
from lengthwise.data.workload import check_tokens

Row = dict[str, Any]
Turns = list[tuple[str, str]]

NO_TURN = "no assistant turn with text before it"
_WHO = ("from", "role", "author", "speaker", "sender", "type", "user")
_WHAT = ("value", "content", "text", "parts", "utterance", "message", "markdown")
_UNENDED = frozenset({"abort", "aborted", "cancelled", "canceled", "error"})
# parts that are no text to who reads a conversation, but were written as an answer
_WRITTEN = {
    "thinking": ("thinking",),
    "reasoning": ("reasoning",),
    "refusal": ("refusal",),
    "tool_use": ("name", "input", "arguments"),
}
_PART = re.compile(r"_\d+\Z")


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its answer; None where the row does not say.

    A turn of a conversation says which (`talk`, its place), what the id of its conversation
    begins with (`stem`), and how it opens: the three that `conversations.groups_of` goes by.
    """

    prompt: str
    response: str | None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    censored: bool = False
    slo_class: str | None = None
    task: str | None = None
    model: str | None = None
    source: str | None = None
    license: str | None = None
    group: str | None = None
    talk: str | None = None
    stem: str | None = None
    opening: str | None = None

    @property
    def characters(self) -> int:
        """How much text it holds."""
        return len(self.prompt) + len(self.response or "")


class Said(NamedTuple):
    """What a row says beside its texts, checked: members of its examples by the same names."""

    prompt_tokens: int | None
    output_tokens: int | None
    censored: bool
    slo_class: str | None
    task: str | None
    model: str | None
    source: str | None
    license: str | None
    group: str | None


def said(row: Row) -> Said:
    """The columns of a row that every form may have; InputError for one of the wrong kind."""
    counts = [
        None if (value := find(row, name)) is None else check_tokens(_whole(value), name)
        for name in ("prompt_tokens", "output_tokens")
    ]
    ending = ending_of(row)
    if ending is not None and ending.lower() in _UNENDED:
        raise NoAnswerError(f"the answer did not end by itself, got finish_reason {shown(ending)}")
    censored = row.get("censored", was_cut(row))
    if not isinstance(censored, bool):
        raise InputError(f"censored must be true or false, got {shown(censored)}")
    slo_class = row.get("slo_class", row["class"] if is_class_name(row.get("class")) else None)
    group = find(row, "group")
    if type(group) is int:
        group = str(group)
    if group is not None and not isinstance(group, str):
        raise InputError(f"group must be text, got {shown(group)}")
    return Said(
        prompt_tokens=counts[0],
        output_tokens=counts[1],
        censored=censored,
        slo_class=None if slo_class in (None, "") else check_class_name(slo_class),
        task=_name(row, "task"),
        model=_name(row, "model"),
        source=_name(row, "source"),
        license=_name(row, "license"),
        group=group or None,
    )


def flat_example(prompt: str, response: str | None, row: Row) -> Example:
    """A prompt with an answer of a row; InputError where there is neither answer nor length."""
    known = said(row)
    if not prompt.strip():
        raise InputError(f"prompt must be text that is not blank, got {shown(prompt)}")
    answer = response if response is not None and response.strip() else None
    if answer is None and known.output_tokens is None:
        if response is not None:
            raise NoAnswerError(f"the answer is empty, got {shown(response)}")
        raise NoAnswerError("needs a response or its output_tokens")
    return Example(prompt, answer, **known._asdict())


def turn_examples(
    messages: Sequence[Any], row: Row, *, place: str, tools: Any = None
) -> Iterator[Example | None]:
    """An example per assistant turn, None for one that is blank or has nothing before it.

    The prompt is the history as the server would render it. Counts that the row gives belong to
    its last turn. InputError for a message of another form.
    """
    known = said(row)
    known = known._replace(task=known.task or "conversation")
    earlier = known._replace(prompt_tokens=None, output_tokens=None, censored=False)
    turns = [turn_of(message) for message in messages]
    opening = next((text for role, text in turns if role == "user"), "")
    last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=-1)
    for position, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        prompt = rendered(turns[:position], tools)
        answer = answer_text(messages[position])
        here = known if position == last else earlier
        if not prompt.strip() or not (answer.strip() or here.output_tokens):
            yield None
            continue
        yield Example(
            prompt,
            answer if answer.strip() else None,
            **here._asdict(),
            talk=place,
            stem=stem_of(row),
            opening=opening,
        )


def turn_of(message: Any) -> tuple[str, str]:
    """(role, text) of one message of any form; InputError where it is none."""
    if not isinstance(message, dict):
        raise InputError(f"a message must be an object, got {shown(message)}")
    name = next((message[key] for key in _WHO if key in message), None)
    if isinstance(name, dict):  # {"author": {"role": "user"}}
        name = name.get("role")
    role = role_of(name)
    if role is None:
        raise InputError(
            "role ('from') of a message must be user, assistant, system, tool or another name of "
            f"these, got {shown(name)}"
        )
    return role, text_of(message)


def text_of(message: Row) -> str:
    """The text of a message, content parts and tool calls included, "" where there is none."""
    content = next((message[key] for key in _WHAT if key in message), None)
    if content is not None and not isinstance(content, str | list | dict):
        raise InputError(f"text ('value') of a message must be text, got {shown(content)}")
    if isinstance(content, list) and not all(isinstance(part, str | dict) for part in content):
        raise InputError(f"the parts of a message must be text or objects, got {shown(content)}")
    return content_text({"content": content, "tool_calls": message.get("tool_calls")})


def answer_text(message: Any) -> str:
    """What a model wrote to give this message: reasoning, text and calls, one after another."""
    written = [message.get("reasoning_content") or message.get("reasoning"), *_parts_of(message)]
    calls = message.get("tool_calls") or message.get("function_call")
    if calls and message.get("content"):
        written.append(content_text({"tool_calls": calls}))
    elif calls and not any(written[1:]):
        written[1:] = [content_text({"tool_calls": calls})]
    if not any(written):
        spoken = message.get("audio")
        written = [
            message.get("refusal"),
            spoken.get("transcript") if isinstance(spoken, dict) else None,
        ]
    return "\n".join(part for part in written if isinstance(part, str) and part)


def _parts_of(message: Row) -> list[str]:
    """The text of a message; of a list of parts also what was thought and called, in its order."""
    parts = message.get("content")
    if not (isinstance(parts, list) and any(map(_is_written, parts))):
        return [text_of(message)]
    found = []
    for part in parts:
        if _is_written(part):
            member = _WRITTEN[part["type"]]
            said = {name: part[name] for name in member if name in part}
            found.append(said[member[0]] if len(member) == 1 and said else json.dumps(said))
        else:
            found.append(text_of({"content": [part]}))
    return [text for text in found if isinstance(text, str)]


def _is_written(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in _WRITTEN


def find(row: Row, name: str) -> Any:
    """A member by any of its names, the first that is there."""
    return next((row[alias] for alias in ALIASES[name] if alias in row), None)


def stem_of(row: Row) -> str | None:
    """What parts of one conversation share: its id without the number of the part."""
    name = row.get("id", row.get("conversation_id", row.get("conversation_hash")))
    return None if name is None else _PART.sub("", str(name))


def _name(row: Row, name: str) -> str | None:
    """A label; what is neither text nor number is no label, and other sets' own affair."""
    value = find(row, name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> Any:
    """3.0 as 3: Parquet and pandas turn a column with gaps into floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
