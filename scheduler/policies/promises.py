"""What ``sa`` says of the plan it hands out, so that what comes can be held against it.

Everybody's chances under the plan and without each of its parts (``plan.feedback.trust``), and how
many tokens it brings by when (``plan.feedback.pace``). Each is asked of one more rollout.
"""

from __future__ import annotations

import numpy as np

from lengthwise.scheduler.plan.feedback.trust import Trust
from lengthwise.scheduler.plan.rollout.rollout_state import END_S, END_STEP_S, END_STEPS
from lengthwise.scheduler.plan.rollout.rows import Snapshot
from lengthwise.scheduler.plan.search import Parts, Picture, no_limits, value_of
from lengthwise.scheduler.policies.candidate_starts import Start
from lengthwise.scheduler.problem import Problem


def lose_unmet(trust: Trust, problem: Problem) -> None:
    """Promises to those who are past their deadlines are broken, whenever they may end."""
    for rows in (problem.waiting, problem.running):
        waited_s = problem.now_s - rows.arrival_s
        unmet = (np.isnan(rows.first_token_s) & (waited_s > rows.ttft_s)) | (waited_s > rows.e2e_s)
        trust.lose(rows.arrival_s[unmet])


def promise_chances(
    trust: Trust, shot: Snapshot, picture: Picture, best: Parts, start: Start, rule: Start
) -> None:
    """Chances of all who are there under the plan, which is of ``start``, and without its parts.

    Without its order the best ``rule`` would serve.
    """
    real = np.r_[: shot.running, shot.waiting : shot.expected]
    real = real[shot.rows.weight[real] > 0]
    none = no_limits(shot.engine)
    variants = {"order": (best._replace(order=rule.order), rule.skip_late)}
    if (best.limits != none).any():
        variants["limits"] = best._replace(limits=none), start.skip_late
    if best.given_up.any():
        nobody = np.zeros_like(best.given_up)
        variants["slots"] = best._replace(given_up=nobody), start.skip_late
    without = {}
    for part, (parts, skip_late) in variants.items():
        value_of(picture, parts, skip_late)
        without[part] = picture.chance[real]
    value_of(picture, best, start.skip_late)
    trust.promise(picture.begin_s, shot.rows.arrival_s[real], picture.chance[real], without)


def tokens_by(picture: Picture, best: Parts, start: Start, now_s: float) -> float:
    """Tokens that who decodes all along gains until ``now_s`` under the plan, a mean a step.

    A step that is then under way counts by the share of its time that has passed.
    """
    value_of(picture._replace(until_s=now_s), best, start.skip_late)
    end = picture.work.end
    ahead_s = min(max(end[END_S] - now_s, 0.0), end[END_STEP_S])
    begun = ahead_s / end[END_STEP_S] if ahead_s > 0.0 else 0.0
    return float(picture.engine.tokens_per_step * (end[END_STEPS] - begun))
