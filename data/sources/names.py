"""What people call the columns of prompts and answers, first match first."""

from __future__ import annotations

ALIASES = {
    "prompt": (
        *("prompt", "instruction", "question", "query", "input", "problem", "text"),
        *("user_prompt", "user_input", "user_message", "inputs", "request", "user", "human"),
        *("input_text",),
    ),
    "context": ("input", "context"),
    "system": ("system_prompt", "system", "system_message", "custom_system_prompt"),
    "response": (
        *("response", "output", "completion", "answer", "target", "reply", "generation"),
        *("model_response", "response_text", "output_text", "generated_text", "outputs"),
        *("model_output", "solution", "assistant", "gpt", "targets"),
    ),
    "prompt_tokens": ("prompt_tokens", "input_tokens", "num_prompt_tokens", "prompt_len"),
    "output_tokens": (
        *("output_tokens", "completion_tokens", "response_tokens", "num_output_tokens"),
        "output_len",
    ),
    "task": ("task", "category"),
    "model": ("model", "generator", "model_name"),
    "source": ("source", "dataset"),
    "license": ("license", "licence"),
    "group": ("group",),
    "censored": ("censored",),
}
WITH_CONTEXT = ("instruction", "question")
"""Names beside which `input` or `context` is a second part of the prompt (Alpaca, Dolly)."""

CONVERSATIONS = (
    *("conversations", "conversation", "messages", "dialog", "dialogue", "turns", "chat"),
    *("contents", "chat_messages"),
)
"""Members that hold a conversation as a list of messages."""

NAMES_OF_COLUMNS = frozenset(
    (*ALIASES["prompt"], *ALIASES["response"], *ALIASES["output_tokens"], *CONVERSATIONS, "chosen")
)
"""Names by which a line is taken for the header of a table."""
