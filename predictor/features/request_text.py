"""The text of a request as it arrives at an OpenAI-compatible server.

Rendered by the tables of `data.chat`, by which files of conversations are read too: what the
server predicts on is what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lengthwise.data.chat import content_text, rendered, role_of


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
    turns = []
    for message in messages:
        if isinstance(message, Mapping):
            role = message.get("role", "user")
            turns.append((role_of(role) or str(role), content_text(message)))
    return rendered(turns, body.get("tools")) if turns else None
