"""The text of a request as it arrives at an OpenAI-compatible server.

A conversation of one user message is that message; any other conversation is its messages, each
under a line `<|role|>`, which `predictor.structure` counts. Training on request logs uses the
same rendering, so what the server predicts on is what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def text_of_request(body: Mapping[str, Any]) -> str | None:
    """Prompt text of a completions or chat body; None where it is token ids or absent."""
    if "messages" in body:
        return _conversation_text(body)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(part, str) for part in prompt):
        return "\n".join(prompt)
    return None


def _conversation_text(body: Mapping[str, Any]) -> str | None:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    turns = [
        (str(message.get("role", "user")), _content_text(message))
        for message in messages
        if isinstance(message, Mapping)
    ]
    tools = body.get("tools")
    suffix = ""
    if isinstance(tools, list) and tools:
        suffix = "\n\nFunctions:\n" + json.dumps([_tool_schema(tool) for tool in tools])
    if not turns:
        return None
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1] + suffix
    return "\n".join(f"<|{role}|>\n{text}" for role, text in turns) + suffix


def _tool_schema(tool: Any) -> Any:
    return tool["function"] if isinstance(tool, Mapping) and "function" in tool else tool


def _content_text(message: Mapping[str, Any]) -> str:
    """Plain text of one message: its content, text parts of a content list, or its tool calls."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "\n".join(part for part in parts if isinstance(part, str))
    calls = message.get("tool_calls")
    return json.dumps(calls) if calls else ""
