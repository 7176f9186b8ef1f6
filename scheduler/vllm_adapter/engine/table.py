"""What the scheduler process knows of each request, in columns the planner can slice.

A request's row is taken when it arrives and freed when it ends, so that a plan over n waiting
requests costs a few array gathers instead of n object walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.data.slo import Slo
from lengthwise.scheduler.problem import NO_PREFIX, RequestArrays
from lengthwise.scheduler.vllm_adapter.engine.tenants import TenantIds

_FLOAT_COLUMNS = (
    "arrival_s",
    "queued_s",
    "prompt_tokens",
    "prefill_left_tokens",
    "generated_tokens",
    "first_token_s",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "weight",
)
_FIRST_ROWS = 256

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(slots=True)
class Tracked:
    """One request as the scheduler sees it; times in seconds on the monotonic clock.

    ``quantiles`` are what is planned with; ``predicted`` is what the predictor said, before the
    correction learned from finished requests and the cut at ``max_tokens``.
    """

    request_id: str
    arrival_s: float
    arrival_unix_s: float
    slo: Slo
    weight: float
    prompt_tokens: int
    max_tokens: int
    quantiles: FloatArray
    predicted: FloatArray
    length_source: str
    predictor: str | None = None
    tenant: str | None = None
    admission: str | None = None
    feature_contract: str | None = None
    features: list[float] | None = None
    prompt: str | None = None
    queued_s: float | None = None  # when it gave up its slot, if it did
    shadow: str | None = None
    shadow_quantiles: FloatArray | None = None
    admitted_s: float | None = None
    first_token_s: float | None = None
    row: int = field(default=-1, compare=False)


class RequestTable:
    """Rows of the tracked requests, by id; grows by doubling."""

    def __init__(self, levels: FloatArray, tenants: TenantIds | None = None) -> None:
        self.levels = levels
        self.tenants = tenants if tenants is not None else TenantIds()
        self._tracked: dict[str, Tracked] = {}
        self._class_ids: dict[str, int] = {}
        self._free: list[int] = []
        self._columns: dict[str, FloatArray] = {
            name: np.zeros(0, dtype=np.float64) for name in _FLOAT_COLUMNS
        }
        self._class_id: IntArray = np.zeros(0, dtype=np.int64)
        self._tenant_id: IntArray = np.zeros(0, dtype=np.int64)
        self._quantiles: FloatArray = np.zeros((0, len(levels)), dtype=np.float64)

    def __len__(self) -> int:
        return len(self._tracked)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._tracked

    def get(self, request_id: str) -> Tracked | None:
        """The tracked request, or None."""
        return self._tracked.get(request_id)

    def add(self, tracked: Tracked) -> None:
        """Take a row for a request that arrived; one with the same id is replaced."""
        self.remove(tracked.request_id)
        if not self._free:
            self._grow()
        row = tracked.row = self._free.pop()
        slo = tracked.slo
        values = {
            "arrival_s": tracked.arrival_s,
            "queued_s": tracked.arrival_s,
            "prompt_tokens": max(1, tracked.prompt_tokens),
            "prefill_left_tokens": max(1, tracked.prompt_tokens),
            "generated_tokens": 0.0,
            "first_token_s": np.nan,
            "ttft_s": np.inf if slo.ttft_s is None else slo.ttft_s,
            "tpot_s": np.inf if slo.tpot_s is None else slo.tpot_s,
            "e2e_s": np.inf if slo.e2e_s is None else slo.e2e_s,
            "weight": tracked.weight,
        }
        for name, value in values.items():
            self._columns[name][row] = value
        self._class_id[row] = self._class_ids.setdefault(slo.slo_class, len(self._class_ids))
        self._tenant_id[row] = self.tenants.acquire(tracked.tenant)
        self._quantiles[row] = tracked.quantiles
        self._tracked[tracked.request_id] = tracked

    def remove(self, request_id: str) -> Tracked | None:
        """Free the row of a request that ended; None when it is not tracked."""
        tracked = self._tracked.pop(request_id, None)
        if tracked is not None:
            self._free.append(tracked.row)
            self.tenants.release(tracked.tenant)
        return tracked

    def note_first_token(self, tracked: Tracked, now_s: float) -> None:
        """The request's first token left the engine at ``now_s``."""
        tracked.first_token_s = now_s
        self._columns["first_token_s"][tracked.row] = now_s

    def note_progress(
        self, request_ids: Sequence[str], prefill_left: Sequence[int], generated: Sequence[int]
    ) -> None:
        """Prompt tokens still to compute, and answer tokens so far, of tracked requests."""
        rows = self._rows(request_ids)
        self._columns["prefill_left_tokens"][rows] = prefill_left
        self._columns["generated_tokens"][rows] = generated

    def note_yield(self, tracked: Tracked, now_s: float, generated: int) -> None:
        """The request gave up its slot: it queues anew, with everything to compute again."""
        tracked.queued_s = now_s
        self._columns["queued_s"][tracked.row] = now_s
        self._columns["prefill_left_tokens"][tracked.row] = tracked.prompt_tokens + generated
        self._columns["generated_tokens"][tracked.row] = generated

    def known(self, request_ids: Sequence[str]) -> list[str]:
        """Those of the ids that are tracked, oldest arrival first."""
        ids = [request_id for request_id in request_ids if request_id in self._tracked]
        ids.sort(key=lambda request_id: self._tracked[request_id].arrival_s)
        return ids

    def arrays(self, request_ids: Sequence[str]) -> RequestArrays:
        """The rows of tracked requests, in the given order, as copies."""
        rows = self._rows(request_ids)
        return RequestArrays(
            **{name: column[rows] for name, column in self._columns.items()},
            class_id=self._class_id[rows],
            prefix_id=np.full(len(rows), NO_PREFIX, dtype=np.int64),
            quantiles=self._quantiles[rows],
        )

    def tenant_ids(self, request_ids: Sequence[str]) -> IntArray:
        """The tenants' numbers of tracked requests, in the given order."""
        return self._tenant_id[self._rows(request_ids)]

    def _rows(self, request_ids: Sequence[str]) -> IntArray:
        return np.fromiter(
            (self._tracked[request_id].row for request_id in request_ids),
            dtype=np.int64,
            count=len(request_ids),
        )

    def _grow(self) -> None:
        old = len(self._class_id)
        size = max(_FIRST_ROWS, 2 * old)
        self._columns = {name: _longer(column, size) for name, column in self._columns.items()}
        self._class_id = _longer(self._class_id, size)
        self._tenant_id = _longer(self._tenant_id, size)
        self._quantiles = _longer(self._quantiles, size)
        self._free.extend(range(size - 1, old - 1, -1))


def _longer(array: npt.NDArray[_Number], rows: int) -> npt.NDArray[_Number]:
    longer = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    longer[: len(array)] = array
    return longer
