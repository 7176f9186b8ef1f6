"""How many may run at once: fewer where a full batch would be too slow for a TPOT objective.

A step takes longer the more sequences decode in it, so a tight time per output token is a limit
on the batch (the batch size of arXiv 2504.14966). With the pace of b sequences

    token_s(b) = base + b · share

the objective holds up to b = (tpot - base) / share. Whether it pays to run so few is for the
plan's cost to say: a smaller batch serves fewer requests.
"""

from __future__ import annotations

import numpy as np

from lengthwise.scheduler.plan.jobs import Jobs
from lengthwise.scheduler.problem import Problem

MARGIN = 0.95  # of the objective: the pace varies from step to step
MOST_CAPS = 3


def binding_caps(problem: Problem, jobs: Jobs) -> list[int]:
    """Batch sizes below the engine's at which some waiting TPOT objective just holds, descending.

    Empty when the full batch is quick enough for all, which costs one comparison.
    """
    tpot = problem.waiting.tpot_s
    if not len(tpot) or float(tpot.min()) >= jobs.token_s:
        return []
    base_s = problem.step_time.base_s
    share_s = max((jobs.token_s - base_s) / jobs.batch, 1e-9)
    tight = np.unique(tpot[(tpot < jobs.token_s) & (jobs.weight > 0)])
    caps = {int((MARGIN * float(limit) - base_s) / share_s) for limit in tight}
    return sorted((cap for cap in caps if 1 <= cap < jobs.batch), reverse=True)[:MOST_CAPS]
