"""Which step a measured duration belongs to, where the engine begins the next before one ends.

With asynchronous scheduling a step is taken as ended when its answer is read, and it is read once
the next one has been given to the device. Where giving waits for the device (a logits processor
that copies to it, say), the answer is read a whole step late: each duration is then the one of the
step that follows, and what a prompt costs is booked on the decodes before it. Seen on an H200
(docs/results/gpu.md): fitted as logged, a prompt token seemed to cost a twentieth of its time.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.step_anchor import LEAST_SAMPLES
from lengthwise.scheduler.step_fit import capped, relative_errors, robust_coefficients

_SURELY = 0.8  # of the error as logged: below, the shift is no accident


def aligned(samples: FloatArray) -> FloatArray:
    """Steps in the order they were taken, ``(k, 4)``, each with the duration of its own.

    The rows as they are, unless with every duration given to the step after it the step-time
    model errs surely less; then one row fewer.
    """
    if len(samples) <= LEAST_SAMPLES or not (samples[:, 3] > 0).all():
        return samples
    shifted = np.column_stack([samples[1:, :3], samples[:-1, 3]])
    return shifted if _error(shifted) < _SURELY * _error(samples) else samples


def _error(samples: FloatArray) -> float:
    return capped(relative_errors(robust_coefficients(samples), samples))
