"""``lengthwise compare``: each predictor version, how well it predicts, what it was worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lengthwise.training import console
from lengthwise.training.registry.attainment import Attainment, VersionRow
from lengthwise.training.registry.card import METRIC_HEADINGS, metric_cells
from lengthwise.training.registry.model_names import MODEL_NAME


def as_json(rows: Sequence[VersionRow]) -> dict[str, Any]:
    """The table as a document: every metric of every version, every arm of every bench."""
    return {"model": MODEL_NAME, "versions": [asdict(row) for row in rows]}


def print_versions(rows: Sequence[VersionRow]) -> None:
    """Two tables on stdout: metrics by version; attainment by version, bench and arm."""
    if not rows:
        console.stdout().print(
            f"No version of {MODEL_NAME} is registered: `lengthwise train --register` makes one."
        )
        return
    console.print_table(
        f"{MODEL_NAME}: versions and their test metrics",
        ["version", "alias", "data", "trained", *METRIC_HEADINGS],
        [_version_cells(row) for row in rows],
    )
    benches = [(row, arm) for row in rows for arm in latest(row.attainment)]
    if not benches:
        console.stdout().print("No bench has used a version yet: `lengthwise bench` runs one.")
        return
    console.print_table(
        "SLO attainment, last bench of each workload and load",
        ["version", "workload", "load", "arm", "attainment", "95 % interval", "provenance"],
        [
            [
                str(row.version), arm.workload, arm.load, arm.arm, f"{arm.attainment:.3f}",
                _interval(arm), arm.provenance,
            ]
            for row, arm in benches
        ],
    )  # fmt: skip


def latest(arms: Sequence[Attainment]) -> list[Attainment]:
    """The arms of the newest run of each (workload, load, provenance); ``arms`` is newest first."""
    newest: dict[tuple[str, str, str], str] = {}
    for arm in arms:
        newest.setdefault((arm.workload, arm.load, arm.provenance), arm.run_id)
    kept = [a for a in arms if newest[a.workload, a.load, a.provenance] == a.run_id]
    return sorted(kept, key=lambda a: (a.workload, a.load, a.provenance, a.arm))


def _version_cells(row: VersionRow) -> list[str]:
    trained = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created_unix_s))
    return [
        str(row.version),
        ", ".join(row.aliases) or "-",
        row.source_label,
        trained,
        *metric_cells(row.metrics),
    ]


def _interval(arm: Attainment) -> str:
    return "-" if arm.low is None or arm.high is None else f"{arm.low:.3f} - {arm.high:.3f}"
