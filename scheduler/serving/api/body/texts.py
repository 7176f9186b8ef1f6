"""The texts of prompts, kept by the API process; the request log's rows name them by id.

Text never travels inside a request: the server would print it with its sampling parameters.
"""

from __future__ import annotations

from lengthwise.data.request_log.writer import limited_writer
from lengthwise.scheduler.serving.settings import ServerSettings

_QUEUED_TEXTS = 2_000


class PromptTexts:
    """Writes ``texts-*.jsonl`` beside the log's rows, within the same limits."""

    def __init__(self, settings: ServerSettings) -> None:
        assert settings.request_log is not None
        self._writer = limited_writer(
            settings.request_log,
            max_mb=settings.request_log_max_mb,
            max_age_days=settings.request_log_max_age_days,
            stem="texts",
            queue_rows=_QUEUED_TEXTS,
        )

    def keep(self, text_id: str, text: str) -> None:
        """Write a prompt's text; returns at once and never raises."""
        self._writer.write({"text_id": text_id, "prompt": text})

    @property
    def dropped(self) -> int:
        """Texts lost to a full queue or a failing disk."""
        return self._writer.dropped

    def close(self) -> None:
        """Write what is queued."""
        self._writer.close()


def prompt_texts(settings: ServerSettings) -> PromptTexts | None:
    """The keeper of texts, where the settings ask for one."""
    if settings.log_prompts and settings.request_log is not None:
        return PromptTexts(settings)
    return None
