"""The tests' own tools on a real server: loads whose every request is accounted for, faults, disks.

They lie in ``tests/vllm/faults``, which the processes of a server under faults have on their path.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "vllm" / "faults"))
from injected_faults import Faults
from request_accounts import (
    Account,
    Asked,
    ask,
    drive,
    leave,
    logged,
    metric,
    metric_in,
    wait_for,
    wait_for_rows,
)
from small_disk import full, small_disk

__all__ = [
    "Account",
    "Asked",
    "Faults",
    "ask",
    "drive",
    "full",
    "leave",
    "logged",
    "metric",
    "metric_in",
    "small_disk",
    "wait_for",
    "wait_for_rows",
]
