"""What stands where vLLM's engine client would: the pool's engine, in the same process.

The middleware asks its engine by utility calls; here they are calls.
"""

from __future__ import annotations

from typing import Any

from lengthwise.scheduler.serving.engine.utility_answers import UtilityAnswers


class PoolClient:
    """Answers as vLLM's client does."""

    def __init__(self, answers: UtilityAnswers) -> None:
        self._answers = answers

    @property
    def engine_core(self) -> PoolClient:
        """The client of the engine core."""
        return self

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        """The engine's answer; KeyError for a call that there is not."""
        return self._answers.answer(method, *args)
