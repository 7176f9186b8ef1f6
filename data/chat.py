"""A conversation as text: the one table of roles, and what of a message is read.

Files and servers say the same thing in many ways. Whoever reads either reads it by these tables,
so that a predictor is trained on what it will be asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# as written by people's tools (lower case) -> as OpenAI-compatible servers say it
ROLES = {
    **dict.fromkeys(
        ("user", "human", "prompter", "customer", "instruction", "question", "client", "usr"),
        "user",
    ),
    **dict.fromkeys(
        (
            *("assistant", "gpt", "chatgpt", "gpt-3", "gpt-3.5", "gpt-4", "gpt4", "bing", "bard"),
            *("claude", "gemini", "llama", "model", "bot", "chatbot", "ai", "agent", "answer"),
            *("function_call", "tool_call", "tool_calls", "response", "output"),
        ),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer", "system_prompt", "platform"), "system"),
    **dict.fromkeys(
        (
            *("tool", "function", "observation", "ipython", "environment", "tool_response"),
            *("tool_output", "tool_result", "tool_results", "function_response", "function_output"),
        ),
        "tool",
    ),
}


def valid_text(text: str) -> str:
    """The text as UTF-8 can hold it: a lone half of a surrogate pair becomes U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # two halves written apart (\\ud83d, \\ude00) are one character
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def role_of(name: object) -> str | None:
    """The role a name stands for, in OpenAI's words; None for a name nobody knows."""
    return ROLES.get(name.strip().lower().replace(" ", "_")) if isinstance(name, str) else None


def content_text(message: Mapping[str, Any]) -> str:
    """Plain text of one message: its content, the text parts of a list, or its tool calls."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, Sequence):
        parts = [part if isinstance(part, str) else _part_text(part) for part in content]
        return "\n".join(part for part in parts if part is not None)
    calls = message.get("tool_calls")
    return json.dumps(calls) if calls else ""


def rendered(turns: Sequence[tuple[str, str]], tools: Any = None) -> str:
    """(role, text) pairs as one prompt text, with the tools' schemas after them if any.

    One user message stands as it is; of any other conversation each message stands under a line
    `<|role|>`, which `predictor.features.structure` counts.
    """
    suffix = ""
    if isinstance(tools, list) and tools:
        suffix = "\n\nFunctions:\n" + json.dumps([_schema(tool) for tool in tools])
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1] + suffix
    return "\n".join(f"<|{role}|>\n{text}" for role, text in turns) + suffix


def _part_text(part: Any) -> str | None:
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if isinstance(text, str) else None


def _schema(tool: Any) -> Any:
    return tool["function"] if isinstance(tool, Mapping) and "function" in tool else tool
