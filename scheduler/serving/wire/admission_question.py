"""Admission: a question on a request that the API process holds back, and the engine's answer.

What the API process makes of the answers of one or several engines, it says to the engine whose
answer it took: that one books it, and nobody books what came too late to count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lengthwise.data.errors import shown
from lengthwise.scheduler.serving.wire.hints import Hints


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a request that the API process holds back is to be admitted; asked in time only."""

    hints: Hints
    prompt_tokens: int
    max_tokens: int | None
    deadline_unix_s: float

    def to_wire(self) -> dict[str, Any]:
        """Plain values for a utility call."""
        return {
            "xargs": self.hints.to_xargs(),
            "prompt_tokens": self.prompt_tokens,
            "max_tokens": self.max_tokens,
            "deadline_unix_s": self.deadline_unix_s,
        }

    @classmethod
    def from_wire(cls, body: Mapping[str, Any], read: Callable[[Any], Hints]) -> Question:
        """The question; ``read`` makes hints of its xargs. KeyError, ValueError when malformed."""
        most = body["max_tokens"]
        return cls(
            hints=read(body["xargs"]),
            prompt_tokens=int(body["prompt_tokens"]),
            max_tokens=None if most is None else int(most),
            deadline_unix_s=float(body["deadline_unix_s"]),
        )


Action = Literal["admit", "shed", "downgrade"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The engine's verdict; ``retry_after_s`` where the request is to be shed.

    ``judge`` names the engine, for the word that follows where it is not to admit.
    """

    action: Action = "admit"
    retry_after_s: float | None = None
    judge: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """Plain values for a utility call."""
        if self.action == "admit":
            return {"action": self.action}
        said = {"action": self.action, "retry_after_s": self.retry_after_s}
        return said if self.judge is None else said | {"judge": self.judge}

    @classmethod
    def from_wire(cls, body: Mapping[str, Any]) -> Answer:
        """The verdict; KeyError or ValueError when malformed."""
        if body["action"] not in get_args(Action):
            known = ", ".join(get_args(Action))
            raise ValueError(f"action must be one of {known}, got {shown(body['action'])}")
        judge = body.get("judge")
        return cls(
            body["action"], body.get("retry_after_s"), judge if isinstance(judge, str) else None
        )
