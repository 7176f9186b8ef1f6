"""The policies by name."""

from __future__ import annotations

POLICIES = (
    "fcfs",
    "priority",
    "sjf",
    "edf",
    "llf",
    "feasible-sjf",
    "feasible-edf",
    "hrrn",
    "sa-paper",
    "sa",
)
