"""From the times that a modelled engine gives to what every comparison ends in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.data.workload import WorkloadRequest
from lengthwise.training.bench.engines.client import QueueSample
from lengthwise.training.bench.results.records import RequestRecord

MEDIAN = 0.5
QUEUE_SAMPLES = 200


def median_tokens(quantiles: FloatArray, levels: FloatArray) -> FloatArray:
    """The column ``(n,)`` of ``quantiles (n, q)`` whose level is nearest to the median."""
    return quantiles[:, int(np.argmin(np.abs(levels - MEDIAN)))]


def to_records(
    requests: Sequence[WorkloadRequest],
    first_s: FloatArray,
    last_s: FloatArray,
    output_tokens: IntArray | Sequence[int],
    repeat: int,
    predicted: FloatArray | None,
) -> list[RequestRecord]:
    """One record a request; one without a finite first and last token is lost.

    ``first_s`` and ``last_s``, ``(n,)``, are on the workload's clock; ``predicted (n,)`` tokens.
    """
    records = []
    for i, request in enumerate(requests):
        ttft_s, e2e_s = (
            float(times[i]) - request.arrival_s if np.isfinite(times[i]) else None
            for times in (first_s, last_s)
        )
        done = ttft_s is not None and e2e_s is not None
        records.append(
            RequestRecord(
                index=i,
                repeat=repeat,
                slo=request.slo,
                arrival_s=request.arrival_s,
                send_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                target_tokens=request.output_tokens,
                output_tokens=int(output_tokens[i]),
                ttft_s=ttft_s,
                e2e_s=e2e_s,
                error=None if done else "not finished",
                predicted_tokens=None if predicted is None else float(predicted[i]),
            )
        )
    return records


def queue_samples(
    requests: Sequence[WorkloadRequest], begun_s: FloatArray, ended_s: FloatArray, end_s: float
) -> list[QueueSample]:
    """Those that have arrived and not begun, and begun and not ended, at evenly spaced times."""
    arrival_s = np.array([r.arrival_s for r in requests])
    return [
        QueueSample(
            float(at),
            int(((arrival_s <= at) & (begun_s > at)).sum()),
            int(((begun_s <= at) & (ended_s > at)).sum()),
        )
        for at in np.linspace(0.0, end_s, QUEUE_SAMPLES)
    ]
