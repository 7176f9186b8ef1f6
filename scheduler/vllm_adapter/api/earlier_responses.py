"""What an earlier response held, where vLLM's server keeps it.

With VLLM_ENABLE_RESPONSES_API_STORE=1 it keeps the messages and the output of each response, and a
request that names one by ``previous_response_id`` is prompted with them. They are read from where
the server itself reads them; what has another shape (a model with a format of its own) is not
known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.scheduler.serving.api.body.readers import Body, History, no_history


def history_of(app: Any) -> History:
    """Reads the earlier responses of this application."""
    handler = getattr(getattr(app, "state", None), "openai_serving_responses", None)
    if handler is None:
        return no_history

    def messages(response_id: str) -> Sequence[Body] | None:
        try:
            kept = handler.msg_store[response_id]
            output = handler.response_store[response_id].output
        except (AttributeError, KeyError, TypeError):
            return None
        if not isinstance(kept, list) or not all(isinstance(one, Mapping) for one in kept):
            return None
        return [*kept, *({"role": "assistant", "content": text} for text in _texts(output))]

    return messages


def _texts(output: Any) -> list[str]:
    """The text of the messages among a response's items; its reasoning is not sent again."""
    items = output if isinstance(output, list) else []
    parts = [
        getattr(part, "text", None)
        for item in items
        if getattr(item, "type", None) == "message"
        for part in getattr(item, "content", None) or ()
    ]
    return [text for text in parts if isinstance(text, str)]
