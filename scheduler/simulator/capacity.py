"""What load 1 is: the requests a second an engine completes of a workload.

Every load, in `simulate`, `bench`, `promote`, the decision value and the studies, is a multiple of
this: the output tokens a second of the engine in its stride, over the mean answer. A real engine
is measured by the same rule (`saturated_tokens_per_s`), and its profile scaled to agree.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

LEAST_REQUESTS = 600
REQUESTS_PER_SLOT = 12  # fewer, and a wide engine is still filling up or already running dry


def requests_needed(profile: EngineProfile) -> int:
    """How many requests of a workload `saturated_rps` takes to see the engine in its stride."""
    return max(LEAST_REQUESTS, REQUESTS_PER_SLOT * profile.capacity.max_num_seqs)


def saturated_rps(workload: SimWorkload, profile: EngineProfile) -> float:
    """Requests/s the modelled engine completes while more wait than fit, oldest first.

    Raises ValueError when the requests are too few for any to wait.
    """
    at_once = replace(workload, arrival_s=np.zeros(len(workload)))
    played = simulate(at_once, make_policy("fcfs"), profile)
    tokens_per_s = saturated_tokens_per_s(
        played.first_token_s, played.finish_s, played.output_tokens
    )
    return tokens_per_s / float(np.mean(played.output_tokens))


def saturated_tokens_per_s(
    first_s: FloatArray, last_s: FloatArray, output_tokens: IntArray
) -> float:
    """Output tokens/s while there was a queue and the engine was in its stride.

    From the time a quarter of the requests have their first token, when a server is no longer
    busy taking them in, to the last first token. ``first_s`` and ``last_s``, ``(n,)``, are the
    times of each first and last token; the tokens between are taken as evenly spread. Raises
    ValueError when all started at once, so that there never was a queue.
    """
    start, end = np.quantile(first_s, 0.25), first_s.max()
    if not end > start:
        raise ValueError("saturated run too short: every request started at once")
    span = np.maximum(last_s - first_s, 1e-9)
    inside = np.clip(np.minimum(last_s, end) - np.maximum(first_s, start), 0.0, None) / span
    tokens = (first_s >= start) + (output_tokens - 1) * inside
    return float(tokens.sum() / (end - start))
