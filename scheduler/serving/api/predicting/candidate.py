"""Loading a predictor beside the one that serves, and whether it may take its place."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.api.predicting.batching import ServedPredictor
from lengthwise.scheduler.serving.api.predicting.prediction import load_predictor
from lengthwise.scheduler.serving.live import LivePredictor
from lengthwise.scheduler.serving.priors import load_priors
from lengthwise.scheduler.serving.wire.answer_length import MAX_TOKENS_LIMIT, check_quantiles

PROBES = (
    "Hi!",
    "Name three rivers.",
    "Answer yes or no: is 17 a prime number?",
    "Write a Python function that merges two sorted lists, with tests.",
    "Explain how B-trees stay balanced when keys are inserted and deleted, step by step.",
    "Write a short story of about 800 words about a lighthouse keeper and the sea.",
    '{"task": "extract", "text": "Ada Lovelace, born 1815 in London", "schema": {"name": "str"}}',
    "Übersetze ins Deutsche: 春眠不觉晓，处处闻啼鸟。",
    "Summarise the following minutes.\n" + "The board met and agreed on the budget. " * 60,
)
MOST_SPREAD = 1000.0  # the 90 % quantile over the 10 % one: beyond, nothing is said about length


def load_checked(
    wanted: LivePredictor, levels: Sequence[float], timeout_s: float
) -> ServedPredictor:
    """The predictor, loaded, warmed up and tried on PROBES; slow, so call it in a thread.

    ``levels`` are those the engine plans with; ``timeout_s`` is what one request would wait.
    Raises InputError that names the directory and what is wrong, whatever that was.
    """
    try:
        load_priors(wanted.directory)  # what the engine will read
        predictor, quick = load_predictor(wanted.directory)
        times_s = []
        for _ in range(3):
            began_s = time.perf_counter()
            predictor.predict(PROBES[4:5], [None])
            times_s.append(time.perf_counter() - began_s)
        rows = np.asarray(predictor.predict(PROBES, [None] * len(PROBES)).quantiles)
        fault = _fault(rows, predictor.levels, levels)
    except InputError:
        raise
    except Exception as error:  # a corrupt artifact may fail in any way
        raise InputError(f"{wanted.directory}: cannot be used: {error!r}") from error
    if fault is None and min(times_s) > timeout_s:
        fault = f"takes {min(times_s):.3f} s for one prompt, above the time-out of {timeout_s:g} s"
    if fault is not None:
        raise InputError(f"{wanted.directory}: {fault}")
    version = wanted.version or predictor.version
    return ServedPredictor(predictor, version, quick, wanted.directory)


def _fault(rows: np.ndarray, own: Sequence[float], wanted: Sequence[float]) -> str | None:
    """What is wrong with predictions ``(n, q)`` of the probes, if anything."""
    if not np.array_equal(own, wanted):
        return f"predicts at levels {list(own)}, this server plans with {list(wanted)}"
    if rows.shape != (len(PROBES), len(own)):
        return f"predicts an array {rows.shape}, not {(len(PROBES), len(own))}"
    for row in rows:
        if check_quantiles(row.tolist(), len(own)) is None:
            return (
                f"predicts {[round(float(v), 2) for v in row]}, which is not finite, not "
                f"non-decreasing, or outside 1 to {MAX_TOKENS_LIMIT} tokens"
            )
    low, high = (int(np.argmin(np.abs(np.asarray(own) - level))) for level in (0.1, 0.9))
    spread = float(np.median(rows[:, high] / rows[:, low]))
    if spread > MOST_SPREAD:
        return f"its 80 % intervals span a factor of {spread:.0f}, above {MOST_SPREAD:g}"
    return None
