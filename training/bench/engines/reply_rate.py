"""How fast a server answered while more waited than fit: the rule that capacity is modelled by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lengthwise.scheduler.simulator.capacity import saturated_tokens_per_s
from lengthwise.training.bench.engines.client import Reply

STEADY = 0.8  # two throughputs as close as that are of one machine


def loaded_tokens_per_s(replies: Sequence[Reply]) -> float:
    """Answer tokens a second of these replies, none of them failed, while there was a queue.

    Raises ValueError where there never was one.
    """
    sent_s, ttft_s, e2e_s = (
        np.array(column)
        for column in zip(
            *((r.send_s, r.ttft_s or 0.0, r.e2e_s or 0.0) for r in replies), strict=True
        )
    )
    tokens = np.array([r.output_tokens for r in replies])
    return saturated_tokens_per_s(sent_s + ttft_s, sent_s + e2e_s, tokens)


def fastest_seen_twice(rates: Sequence[float]) -> float | None:
    """The largest of these rates that another comes near; None where no two are close.

    Other work on the machine slows a run, so the larger of two that agree counts. A rate that no
    other run comes near does not: answers held up on their way arrive together, and look faster
    than the server is.
    """
    falling = sorted(rates, reverse=True)
    return next((rate for rate, next_rate in pairwise(falling) if next_rate >= STEADY * rate), None)
