"""What gateways, tracers and providers put around an answer, taken off: bodies, usage, endings.

OpenAI's chat, completions, responses and batches, Anthropic, Gemini, Bedrock, Ollama, TGI, and
streams kept as lists of chunks; under whatever name a gateway keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from lengthwise.data.sources.forms.conversation_forms import as_messages

Row = dict[str, Any]

REQUESTS = ("request", "request_body", "reqpayload", "body", "inputs", "input")
REPLIES = ("response", "response_body", "resppayload", "outputs", "output", "result")
_INNER = ("body", "inputBodyJson", "outputBodyJson", "message", "json")
_COUNTS = {
    "prompt_tokens": (
        *("prompt_tokens", "input_tokens", "promptTokenCount", "inputTokens", "prompt_eval_count"),
        *("inputTokenCount", "input"),
    ),
    "output_tokens": (
        *("completion_tokens", "output_tokens", "candidatesTokenCount", "outputTokens"),
        *("eval_count", "generated_tokens", "outputTokenCount", "output"),
    ),
}
_USAGES = ("usage", "usageMetadata", "usagemetadata", "usage_metadata", "usagedetails", "details")
_ENDINGS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason")
_CUT = frozenset(
    {
        *("length", "max_tokens", "max_output_tokens", "max_new_tokens", "max_length"),
        *("model_length", "token_limit", "model_context_window_exceeded"),
    }
)


class Answer(NamedTuple):
    """One answer of a response, as a message, and how it ended if that is said."""

    message: Row
    ending: str | None


def was_cut(row: Row) -> bool:
    """Whether a row, choice or response says that its answer ended at a limit."""
    return (ending_of(row) or "").lower() in _CUT


def ending_of(row: Row) -> str | None:
    """How an answer ended in the words of who kept it; None where nothing is said."""
    for holder in (row, row.get("details"), row.get("incomplete_details")):
        if not isinstance(holder, dict):
            continue
        for name in (*_ENDINGS, "finishreason", "stopreason", "reason"):
            if name == "reason" and holder is row:
                continue
            if isinstance(value := holder.get(name), str) and value:
                return value
    return None


def tokens_of(holder: Row) -> Row:
    """The counts that a response's usage gives; a count of 0 beside an answer says nothing."""
    found: Row = {}
    for usage in (*(holder.get(name) for name in _USAGES), holder):
        if not isinstance(usage, dict):
            continue
        for name, aliases in _COUNTS.items():
            known = aliases if usage is not holder else aliases[:-1]  # `input` there is the text
            value = next((usage[alias] for alias in known if usage.get(alias)), None)
            if value is not None and not isinstance(value, str | list | dict):
                found.setdefault(name, value)
    return found


def answers_in(value: Any) -> list[Answer]:
    """The answers that a response holds; none where it is no response that is known."""
    if isinstance(value, list):
        return _of_chunks(value)
    if not isinstance(value, dict):
        return []
    for read in (_of_choices, _of_candidates, _of_output, _of_message, _of_generations):
        if found := read(value):
            return found
    for name in _INNER:
        if isinstance(inner := value.get(name), dict) and (found := answers_in(inner)):
            return found
    return []


def reply_of(row: Row) -> Any:
    """The response that a row keeps, or the row itself where it is one; None for neither."""
    for name in REPLIES:
        if isinstance(row.get(name), dict | list) and answers_in(row[name]):
            return row[name]
    lists = any(isinstance(row.get(name), list) for name in ("choices", "candidates"))
    if lists or ("messages" in row and isinstance(row.get("message"), dict)):
        return row if answers_in(row) else None
    return None


def failed(row: Row) -> Any:
    """The error that a row keeps instead of a response; None where there is none."""
    for name in REPLIES:
        value = row.get(name)
        while isinstance(value, dict):
            if value.get("error"):
                return value["error"]
            value = next((value[key] for key in _INNER if isinstance(value.get(key), dict)), None)
    return None


def usage_holder(value: Any) -> Row:
    """The part of a response that gives its usage and its model."""
    while isinstance(value, dict):
        if tokens_of(value) or not any(isinstance(value.get(name), dict) for name in _INNER):
            return value
        value = next(value[name] for name in _INNER if isinstance(value.get(name), dict))
    return value[-1] if isinstance(value, list) and value and isinstance(value[-1], dict) else {}


def request_of(row: Row) -> Row | None:
    """The body that was asked with, under whatever name; None where there is none."""
    for name in REQUESTS:
        body = row.get(name)
        while isinstance(body, dict):
            if talk := asked(body):
                return talk
            body = next((body[key] for key in _INNER if isinstance(body.get(key), dict)), None)
    return None


def asked(body: Row) -> Row | None:
    """A request's body with its conversation under `messages`, if it has one, or its prompt."""
    for name in ("messages", "input", "contents", "prompt"):
        talk = as_messages(name, body[name]) if isinstance(body.get(name), list) else None
        if talk and all(isinstance(message, dict) for message in talk):
            messages = [m for m in map(_item, talk) if m is not None]
            system = body.get("instructions") or body.get("system")
            system = system or body.get("systemInstruction")
            if isinstance(system, list):
                system = {"content": system}
            if isinstance(system, str) and system.strip():
                system = {"content": system}
            if isinstance(system, dict):
                messages = [{**system, "role": "system"}, *messages]
            return {**body, "messages": messages}
    for name in ("prompt", "input", "inputs", "inputText"):
        if isinstance(text := body.get(name), str) and text.strip():
            instructions = body.get("instructions")
            if isinstance(instructions, str) and instructions.strip():
                return {**body, "system": instructions, "prompt": text}
            return {**body, "prompt": text}
    return None


def _of_choices(reply: Row) -> list[Answer]:
    choices = reply.get("choices")
    if not isinstance(choices, list):
        return []
    if any(isinstance(c, dict) and isinstance(c.get("delta"), dict) for c in choices):
        return _of_chunks([reply])
    found = []
    for choice in choices:
        if not isinstance(choice, dict) or not ("message" in choice or "text" in choice):
            continue
        message = choice.get("message")
        text = {"content": choice.get("text")}
        message = message if isinstance(message, dict) else text
        found.append(Answer({**message, "role": "assistant"}, ending_of(choice)))
    return found


def _of_candidates(reply: Row) -> list[Answer]:
    candidates = reply.get("candidates")
    if not isinstance(candidates, list):
        return []
    return [
        Answer({**c["content"], "role": "assistant"}, ending_of(c))
        for c in candidates
        if isinstance(c, dict) and isinstance(c.get("content"), dict)
    ]


def _of_output(reply: Row) -> list[Answer]:
    """The items of OpenAI's responses, or Bedrock's `output`, as one message."""
    output = reply.get("output")
    if isinstance(output, dict) and isinstance(output.get("message"), dict):
        return [Answer({**output["message"], "role": "assistant"}, ending_of(reply))]
    if not (isinstance(output, list) and output and all(isinstance(i, dict) for i in output)):
        return []
    parts: list[Any] = []
    for item in output:
        if item.get("type") == "function_call":
            parts.append({"type": "tool_use", "name": item.get("name"), **_kept(item, "arguments")})
        elif isinstance(item.get("content"), list):
            parts += item["content"]
        elif isinstance(item.get("content"), str):
            parts.append(item["content"])
    return [Answer({"role": "assistant", "content": parts}, ending_of(reply))] if parts else []


def _of_message(reply: Row) -> list[Answer]:
    """One message: Anthropic's, Ollama's, TGI's, or an assistant's alone."""
    message = reply.get("message")
    if isinstance(message, dict) and "content" in message and message.get("role") != "user":
        return [Answer({**message, "role": "assistant"}, ending_of({**message, **reply}))]
    if isinstance(reply.get("content"), str | list) and reply.get("role") in ("assistant", "ai"):
        return [Answer({**reply, "role": "assistant"}, ending_of(reply))]
    for name in ("content", "response", "generated_text", "output_text", "completion"):
        text = reply.get(name)
        if isinstance(text, str) or (name == "content" and isinstance(text, list)):
            return [Answer({"role": "assistant", "content": text}, ending_of(reply))]
    return []


def _of_generations(reply: Row) -> list[Answer]:
    """LangChain's: a list of lists of texts."""
    rows = reply.get("generations")
    flat = (
        [one for row in rows for one in (row if isinstance(row, list) else [row])]
        if (isinstance(rows, list))
        else []
    )
    return [
        Answer({"role": "assistant", "content": one["text"]}, ending_of(one))
        for one in flat
        if isinstance(one, dict) and isinstance(one.get("text"), str)
    ]


def _of_chunks(chunks: list[Any]) -> list[Answer]:
    """A stream that was kept as its chunks, or a list that holds one response."""
    texts: dict[int, list[str]] = {}
    endings: dict[int, str | None] = {}
    for chunk in chunks:
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(delta, dict):
                continue
            number = choice.get("index")
            number = number if isinstance(number, int) else 0
            endings[number] = ending_of(choice) or endings.get(number)
            said = (delta.get("reasoning_content"), delta.get("content"))
            texts.setdefault(number, []).extend(_strings(said))
    if texts:
        return [
            Answer({"role": "assistant", "content": "".join(parts)}, endings[number])
            for number, parts in sorted(texts.items())
        ]
    return answers_in(chunks[0]) if len(chunks) == 1 and isinstance(chunks[0], dict) else []


def _item(item: Row) -> Row | None:
    """A message of a request; of OpenAI's responses also calls and what they gave."""
    kind = item.get("type")
    if kind == "function_call":
        return {"role": "assistant", "tool_calls": [{"function": _kept(item, "name", "arguments")}]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output")}
    return None if kind == "reasoning" else item


def _kept(item: Row, *names: str) -> Row:
    return {name: item[name] for name in names if name in item}


def _strings(values: Iterable[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]
