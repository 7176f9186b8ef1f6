"""Whether newcomers wait for the plan that is being made for them.

A plan from the thread comes a step late. Where a slot is free for everybody who arrives nobody
waits that long, and so nobody is ever planned for: on an engine whose decodes slow each other down
before its slots run out the plan that holds some back, to keep the pace of the others, would be
asked for by nobody. Therefore while one more comes near the tightest TPOT objective, newcomers
wait for the plan: a step as a rule, ``LONGEST_S`` at most.
"""

from __future__ import annotations

from lengthwise.scheduler.serving.engine.observed.steps import StepTimer, TokensPerStep
from lengthwise.scheduler.serving.engine.plans.planning import Planner
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable
from lengthwise.scheduler.step_time import StepTimeModel

NEAR = 0.8  # of the tightest TPOT objective
LONGEST_S = 0.2
MOST_PREFILLING = 0.9  # of the time


class HoldBack:
    """Asked before each step in which somebody runs, somebody waits and no plan is in force."""

    def __init__(
        self,
        table: RequestTable,
        planner: Planner,
        timer: StepTimer,
        tokens_per_step: TokensPerStep,
    ) -> None:
        self._table = table
        self._planner = planner
        self._timer = timer
        self._tokens_per_step = tokens_per_step
        self._since_s: float | None = None
        self._over = False

    def reset(self) -> None:
        """Nobody waits any more."""
        self._since_s, self._over = None, False

    def end(self) -> None:
        """A plan has come: who waits now waits for its own turn."""
        self._over = True

    def holds(self, newcomers: int, now_s: float) -> bool:
        """Whether these stay out of the next step."""
        if self._over or not self.near_limit(newcomers, now_s):
            return False
        if self._since_s is None:
            self._since_s = now_s
        self._over = now_s - self._since_s > LONGEST_S
        return not self._over

    def near_limit(self, newcomers: int, now_s: float) -> bool:
        """Whether the pace with the newcomers comes near the tightest TPOT objective.

        One that a sequence all alone would miss is nobody's reason to wait.
        """
        _, decodes, context_tokens = self._timer.last_features
        if not decodes:
            return False
        model, tokens = self._planner.step_time, self._tokens_per_step.mean
        alone_s = model.step_s(0, 1, context_tokens / decodes) / tokens
        tpot_s, prompt_tokens = self._table.tightest_tpot_s(alone_s)
        if tpot_s is None:
            return False
        rate_rps = self._planner.arrivals.rps(now_s)
        pace_s = pace(model, decodes, context_tokens, newcomers, rate_rps, prompt_tokens)
        return pace_s / tokens > NEAR * tpot_s


def pace(
    model: StepTimeModel,
    decodes: int,
    context_tokens: int,
    newcomers: int,
    rate_rps: float,
    prompt_tokens: float,
) -> float:
    """Seconds a step once the newcomers decode too, prompts coming in at this rate."""
    if not decodes:
        return 0.0
    many = decodes + newcomers
    context = context_tokens * many / decodes
    decode_s = model.step_s(0, many, context)
    prompt_s = model.more_s(prompt_tokens, many, decode_s)
    return decode_s / (1.0 - min(MOST_PREFILLING, rate_rps * prompt_s))
