"""The utility calls of the API process to the engine: their names, and answers as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

STATUS_METHOD = "lengthwise_status"
CONFIGURE_METHOD = "lengthwise_configure"
ADMIT_METHOD = "lengthwise_admit"
ACTED_METHOD = "lengthwise_acted"
LOAD_METHOD = "lengthwise_load"
WHOLE_ENDED_METHOD = "lengthwise_whole_ended"
REESTIMATE_METHOD = "lengthwise_reestimate"
LEFT_EARLY_METHOD = "lengthwise_left_early"


def plain(value: Any) -> Any:
    """The value as msgpack takes it: numpy's numbers and arrays become Python's.

    One value of another kind in an answer would end the thread that sends all of the engine's.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    return str(value)
