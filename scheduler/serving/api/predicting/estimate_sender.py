"""Better estimates on their way to the engines: made fit for the wire, sent in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.serving.api.engines import Telling
from lengthwise.scheduler.serving.wire.answer_length import check_quantiles, rounded
from lengthwise.scheduler.serving.wire.reestimate import Reestimate
from lengthwise.scheduler.serving.wire.utility_calls import REESTIMATE_METHOD

WireRow = tuple[float, ...] | None


def wire_rows(quantiles: FloatArray) -> list[WireRow]:
    """Quantiles ``(n, q)`` as they are sent; None of a row that is no length."""
    rows: list[WireRow] = []
    for row in np.asarray(quantiles).tolist():
        wire = rounded(row) if all(np.isfinite(row)) else ()
        rows.append(None if check_quantiles(wire, len(row)) is None else wire)
    return rows


class EstimateSender:
    """Tells engines of estimates; nobody waits for it, and what fails leaves all as it was."""

    def __init__(self) -> None:
        self._telling = Telling()

    def send(
        self, loop: asyncio.AbstractEventLoop, estimates: Iterable[tuple[Any, Reestimate]]
    ) -> None:
        """Each to the engines of its core, in one call a core."""
        by_core: dict[int, tuple[Any, list[Any]]] = {}
        for core, estimate in estimates:
            by_core.setdefault(id(core), (core, []))[1].append(estimate.to_wire())
        for core, said in by_core.values():
            self._telling.tell(core, REESTIMATE_METHOD, said, loop)
