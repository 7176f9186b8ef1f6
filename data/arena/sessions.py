"""Sessions of many turns on a few shared system prompts: what an agent's requests look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """A beginning that all requests of a session share with those of other sessions."""

    prefix: str
    prefix_tokens: int
    share: float


@dataclass(frozen=True, slots=True)
class Sessions:
    """How requests hang together.

    `live` sessions take turns at random, each of `mean_turns` on the mean (geometric); one that
    ends makes room for a new one. A turn's prompt holds the system prompt, what was said before
    (at most `most_history_tokens`: agents compact it) and what is new.
    """

    system_prompts: tuple[SystemPrompt, ...]
    live: int
    mean_turns: float
    most_history_tokens: int

    def turns(
        self, new_tokens: Sequence[int], answer_tokens: Sequence[int], rng: np.random.Generator
    ) -> list[SessionTurn]:
        """A turn for each request, in order of arrival.

        Those who are live at the start are in the middle of their sessions, so that the first
        requests look like the last ones.
        """
        mean_tokens = float(np.mean(new_tokens) + np.mean(answer_tokens)) if new_tokens else 0.0
        shares = np.array([p.share for p in self.system_prompts])
        began = 0

        def fresh(turns_done: int) -> _Open:
            nonlocal began
            began += 1
            system_prompt = self.system_prompts[rng.choice(len(shares), p=shares / shares.sum())]
            return _Open(f"session-{began}", system_prompt, turns_done * mean_tokens)

        end = 1.0 / self.mean_turns
        live = [fresh(int(rng.geometric(end)) - 1) for _ in range(self.live)]
        turns = []
        for new, answer in zip(new_tokens, answer_tokens, strict=True):
            place = int(rng.integers(self.live))
            session = live[place]
            history = int(min(session.said_tokens, self.most_history_tokens))
            before = session.system_prompt.prefix_tokens + history
            turns.append(SessionTurn(session.name, session.system_prompt, before + new))
            session.said_tokens += new + answer
            if rng.random() < end:
                live[place] = fresh(0)
        return turns


@dataclass(frozen=True, slots=True)
class SessionTurn:
    """One request's place in its session."""

    session: str
    system_prompt: SystemPrompt
    prompt_tokens: int


@dataclass(slots=True)
class _Open:
    name: str
    system_prompt: SystemPrompt
    said_tokens: float
