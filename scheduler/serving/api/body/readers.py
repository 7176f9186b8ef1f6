"""Where the body of each kind of generating route keeps what we read.

A reader finds the prompts (one a sequence that the route will start, None for one without text),
the object of the sampling parameters, the object of the extra arguments, and the name of the
limit. It never refuses: what is malformed is the engine's to say, and reads as no prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lengthwise.predictor.features.request_text import text_of_request

Body = Mapping[str, Any]
_TRUE = frozenset(("true", "1", "on", "t", "y", "yes"))


@dataclass(frozen=True, slots=True)
class RequestParts:
    """What a body holds, where its route keeps it.

    ``prompts``: text, or None, of each sequence group the server will start, in its order.
    ``sampling``: the mapping with ``min_tokens``, ``ignore_eos`` and the limits ``limits``, of
    which the first that is given counts.
    ``xargs``: the extra arguments as the client gave them. ``is_open``: the server starts further
    sequences as it goes (beams, tools of its own), so nobody knows how many parts there will be.
    ``earlier_id``: an earlier response that is not known here, whose text goes before the prompt.
    """

    prompts: Sequence[str | None] = ()
    sampling: Body = field(default_factory=dict)
    limits: tuple[str, ...] = ("max_tokens",)
    xargs: Any = None
    is_open: bool = False
    earlier_id: str | None = None


History = Callable[[str], Sequence[Body] | None]
"""The messages up to an earlier response and with it, by its id; None of one not known."""
Reader = Callable[[Body, History], RequestParts]


def no_history(response_id: str) -> Sequence[Body] | None:
    """No response is known."""
    return None


def read_chat(body: Body, history: History = no_history) -> RequestParts:
    """A chat; one prompt."""
    return RequestParts(
        (text_of_request(body) or None,),
        body,
        ("max_completion_tokens", "max_tokens"),
        body.get("vllm_xargs"),
        _beams(body),
    )


def read_completions(body: Body, history: History = no_history) -> RequestParts:
    """Embeddings come before the prompts, as in the server's own order."""
    prompts: list[str | None] = []
    embeds = body.get("prompt_embeds")
    if embeds is not None:
        prompts += [None] * (len(embeds) if isinstance(embeds, list) else 1)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        prompts.append(prompt or None)
    elif isinstance(prompt, list) and prompt:
        # where one is a number the server takes all for tokens, 1.0 and "1" too, or none
        tokens = any(isinstance(part, int | float) for part in prompt)
        prompts += [None] if tokens else [_text(part) for part in prompt]
    return RequestParts(prompts, body, ("max_tokens",), body.get("vllm_xargs"), _beams(body))


def read_chat_batch(body: Body, history: History = no_history) -> RequestParts:
    """Several chats in one body."""
    talks = body.get("messages")
    prompts = [text_of_request({"messages": talk}) or None for talk in _list(talks)]
    limits = ("max_completion_tokens", "max_tokens")
    return RequestParts(prompts, body, limits, body.get("vllm_xargs"))


def read_responses(body: Body, history: History = no_history) -> RequestParts:
    """OpenAI's responses; what an earlier one held goes before the input."""
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _list(given)
    system, earlier_id = _text(body.get("instructions")), _text(body.get("previous_response_id"))
    earlier = None if earlier_id is None else history(earlier_id)
    messages: list[Body] = [{"role": "system", "content": system}] if system else []
    # as the server has it: instructions are of one response only
    messages += [one for one in earlier or () if one.get("role") != "system"]
    messages += [dict(_message_of_item(item)) for item in items if isinstance(item, Mapping)]
    tools = [tool for tool in _list(body.get("tools")) if isinstance(tool, Mapping)]
    own_tools = any(tool.get("type") != "function" for tool in tools)
    return RequestParts(
        (text_of_request({"messages": messages, "tools": tools}) or None,),
        body,
        ("max_output_tokens",),
        body.get("vllm_xargs"),
        own_tools,
        earlier_id if earlier is None else None,
    )


def _message_of_item(item: Body) -> Body:
    """An item of a response's input as a chat message: calls and their results are items there."""
    kind = item.get("type")
    if kind == "function_call":
        call = {"name": item.get("name"), "arguments": item.get("arguments")}
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output")}
    return item


def read_messages(body: Body, history: History = no_history) -> RequestParts:
    """Anthropic's messages."""
    messages = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    for message in _list(body.get("messages")):
        if isinstance(message, Mapping):
            content = message.get("content")
            blocks = [_block_text(block) for block in content] if isinstance(content, list) else []
            parts: Any = [{"type": "text", "text": text} for text in blocks if text]
            messages.append({**message, "content": parts if blocks else content})
    text = text_of_request({"messages": messages, "tools": body.get("tools")})
    return RequestParts((text or None,), body, ("max_tokens",), body.get("vllm_xargs"))


def _block_text(block: Any) -> str | None:
    """The text of a content block: its own, of a tool's call, or of a tool's result."""
    if not isinstance(block, Mapping):
        return None
    if block.get("type") == "tool_use":
        return json.dumps({"name": block.get("name"), "arguments": block.get("input")})
    if block.get("type") == "tool_result":
        content = block.get("content")
        texts = [_block_text(part) for part in content] if isinstance(content, list) else [content]
        return "\n".join(text for text in texts if isinstance(text, str)) or None
    return _text(block.get("text"))


def read_tokens(body: Body, history: History = no_history) -> RequestParts:
    """Tokens in, tokens out: no text, and sampling parameters in an object of their own."""
    sampling = body.get("sampling_params")
    sampling = sampling if isinstance(sampling, Mapping) else {}
    given = [sampling.get("extra_args"), body.get("vllm_xargs")]
    xargs = {k: v for said in given if isinstance(said, Mapping) for k, v in said.items()}
    return RequestParts((None,), sampling, ("max_tokens",), xargs)


def read_invocations(body: Body, history: History = no_history) -> RequestParts:
    """The server takes what fits a chat as a chat, anything else as a completion."""
    return read_chat(body) if "messages" in body else read_completions(body)


def _beams(body: Body) -> bool:
    return is_true(body.get("use_beam_search"))


def is_true(value: Any) -> bool:
    """Whether a body's value is true to the server, which takes numbers and words too."""
    if isinstance(value, str):
        return value.lower() in _TRUE
    return isinstance(value, int | float) and value == 1


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
