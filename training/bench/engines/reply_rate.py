"""How fast a server answered while more waited than fit: the rule that capacity is modelled by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lengthwise.scheduler.simulator.capacity import saturated_tokens_per_s
from lengthwise.training.bench.engines.client import Reply


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
