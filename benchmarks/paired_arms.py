"""Two arms of finished benches, request by request, each bench alone and all together.

    python -m benchmarks.paired_arms sa:learned runs/bench-*

Differences in attainment of the first arm to every other, in points, with 95 % intervals by block
bootstrap over stretches of neighbouring requests (training.bench.records.attainment_interval).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.common import finish, print_table
from lengthwise.training.bench.records import attainment_interval
from lengthwise.training.bench.report import RECORDS_FILE, RESULT_FILE

Outcomes = dict[str, dict[int, list[bool]]]  # arm -> repeat -> met, in order of arrival


def outcomes(directory: Path) -> Outcomes:
    """What each arm met, requests in order of arrival."""
    rows = [json.loads(line) for line in (directory / RECORDS_FILE).read_text().splitlines()]
    rows.sort(key=lambda row: (row["repeat"], row["arrival_s"], row["index"]))
    met: Outcomes = defaultdict(lambda: defaultdict(list))
    for row in rows:
        met[row["arm"]][row["repeat"]].append(bool(row["met"]))
    return met


def differences(met: Outcomes, ours: str, other: str) -> list[np.ndarray]:
    """Per repeat, met by ours less met by the other; ValueError where their requests differ."""
    found = []
    for repeat, hits in met[ours].items():
        if len(hits) != len(met[other][repeat]):
            raise ValueError(f"{ours} and {other} did not see the same requests")
        found.append(np.subtract(hits, met[other][repeat], dtype=float))
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("arm", help="as in the result, e.g. sa:learned")
    arguments.add_argument("runs", type=Path, nargs="+", help="directories of finished benches")
    options = arguments.parse_args()
    pooled: dict[str, list[np.ndarray]] = defaultdict(list)
    rows, found = [], []
    parts: list[tuple[str, dict[str, list[np.ndarray]]]] = []
    for directory in options.runs:
        result = json.loads((directory / RESULT_FILE).read_text())
        met = outcomes(directory)
        one = {arm: differences(met, options.arm, arm) for arm in met if arm != options.arm}
        for arm, values in one.items():
            pooled[arm] += values
        parts.append((f"{result['workload']} at {result['load']:g}", one))
    for name, one in [*parts, ("all together", pooled)]:
        for arm, values in one.items():
            interval = attainment_interval(values)
            assert interval is not None, "a bench without requests"
            low, high = (100 * end for end in interval)
            mean = 100 * float(np.concatenate(values).mean())
            rows.append([name, arm, f"{mean:+.1f}", f"{low:+.1f} to {high:+.1f}"])
            found.append({"bench": name, "arm": arm, "points": mean, "ci95": [low, high]})
    print_table(["bench", f"{options.arm} less", "points", "95 %"], rows)
    finish("paired_arms", found)


if __name__ == "__main__":
    main()
