"""Which step a measured duration belongs to, where the engine begins the next before one ends.

With asynchronous scheduling a step is taken as ended when its answer is read, and it is read once
the next one has been given to the device. Where giving waits for the device (a logits processor
that copies to it, say), the answer is read a whole step late: each duration is then the one of the
step that follows. Where giving takes the host long, as launching every kernel of a step with
prompts does, the answer is read late by a part of it: the decodes before such a step look long, and
the step itself short. Both were seen on an H200 (docs/results/gpu.md): fitted as logged, a prompt
token seemed to cost a twentieth of its time the one way, half of it the other.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.step_anchor import LEAST_SAMPLES, design_of
from lengthwise.scheduler.step_fit import capped, relative_errors, robust_coefficients

_SURELY = 0.8  # of the error as logged: below, it is no accident
_ROUNDING = 1e-6
_POOLED = 4  # steps with prompts in a row that share what they took


def aligned(samples: FloatArray) -> FloatArray:
    """Steps in the order they were taken, ``(k, 4)``, each with the duration of its own.

    The rows as they are, unless the step-time model errs surely less on them with every duration
    given to the step after it (then one row fewer), or with what is unusual of decodes before a
    step with prompts given to that step (then steps with prompts that follow each other are means
    of up to four, as nothing tells where one ended).
    """
    if len(samples) <= LEAST_SAMPLES or not (samples[:, 3] > 0).all():
        return samples
    shifted = np.column_stack([samples[1:, :3], samples[:-1, 3]])
    moved = _given_to_prompts(samples)
    least = _SURELY * _error(samples) - _ROUNDING
    shifted_error, moved_error = _error(shifted), _error(moved)
    if min(shifted_error, moved_error) >= least:
        return samples
    return shifted if shifted_error <= moved_error else _pooled(moved)


def _given_to_prompts(samples: FloatArray) -> FloatArray:
    """What decodes just before a step with prompts took beyond the usual, booked on that step.

    What is usual is said by decodes that have no step with prompts beside them; all durations
    together stay what they were.
    """
    prompts = samples[:, 0] > 0
    near = np.zeros(len(samples), dtype=bool)
    near[:-1] |= prompts[1:]
    near[1:] |= prompts[:-1]
    alone = samples[~prompts & ~near]
    before = np.flatnonzero(~prompts[:-1] & prompts[1:])
    if len(alone) <= LEAST_SAMPLES or not len(before):
        return samples
    moved = samples.copy()
    usual_s = design_of(samples[before]) @ robust_coefficients(alone)
    both_s = samples[before, 3] + samples[before + 1, 3]
    moved[before, 3] = np.minimum(usual_s, both_s / 2.0)
    moved[before + 1, 3] = both_s - moved[before, 3]
    return moved


def _pooled(samples: FloatArray) -> FloatArray:
    """Steps with prompts that follow each other as means of up to four of them."""
    pooled = samples.copy()
    edges = np.flatnonzero(np.diff(samples[:, 0] > 0, prepend=False, append=False))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        for at in range(begin, end, _POOLED):
            few = slice(at, min(at + _POOLED, end))
            pooled[few] = samples[few].mean(axis=0)
    return pooled


def _error(samples: FloatArray) -> float:
    return capped(relative_errors(robust_coefficients(samples), samples))
