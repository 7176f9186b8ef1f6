"""What the scheduler process knows of each request, in columns the planner can slice.

A request's row is taken when it arrives and freed when it ends, so that a plan over n waiting
requests costs a few array gathers instead of n object walks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.data.slo import Slo
from lengthwise.scheduler.problem import NO_PREFIX, RequestArrays
from lengthwise.scheduler.serving.engine.requests.tenants import TenantIds
from lengthwise.scheduler.serving.wire.hints import Whole

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
    "cached_tokens",
    "prefix_tokens",
)
_ARRIVAL = _FLOAT_COLUMNS.index("arrival_s")
_QUEUED = _FLOAT_COLUMNS.index("queued_s")
_PROMPT = _FLOAT_COLUMNS.index("prompt_tokens")
_PREFILL_LEFT = _FLOAT_COLUMNS.index("prefill_left_tokens")
_GENERATED = _FLOAT_COLUMNS.index("generated_tokens")
_FIRST_TOKEN = _FLOAT_COLUMNS.index("first_token_s")
_TPOT = _FLOAT_COLUMNS.index("tpot_s")
_CACHED = _FLOAT_COLUMNS.index("cached_tokens")
_PREFIX = _FLOAT_COLUMNS.index("prefix_tokens")
_FIRST_ROWS = 256

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(slots=True)
class Tracked:
    """One request as the scheduler sees it; times in seconds on the monotonic clock.

    ``quantiles`` are what is planned with; ``predicted`` is what the predictor said, before the
    correction learned from finished requests and the cut at ``max_tokens``. No answer ends before
    ``min_tokens``. Under ``reestimate_key`` a better prediction may follow. ``may_stop``: where the
    engine is to drop it, somebody says whether the answer was whole (``observed.unsure_ends``).
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
    features: Sequence[float] | None = None
    text_id: str | None = None
    whole: Whole | None = None
    fleet_key: int | None = None
    min_tokens: int = 0
    reestimate_key: str | None = None
    may_stop: bool = False
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
        self._row_of: dict[str, int] = {}
        self._classes = TenantIds()  # clients choose their names too, a new one each if they like
        self._free: list[int] = []
        self._left: list[int] = []  # free once the table is released
        self._held = False
        # A column a line, so that one gather takes them all and leaves each contiguous.
        self._floats: FloatArray = np.zeros((len(_FLOAT_COLUMNS), 0))
        self._class_id: IntArray = np.zeros(0, dtype=np.int64)
        self._tenant_id: IntArray = np.zeros(0, dtype=np.int64)
        self._prefix_id: IntArray = np.zeros(0, dtype=np.int64)
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
        slo, prompt_tokens = tracked.slo, max(1, tracked.prompt_tokens)
        self._floats[:, row] = (  # in the order of _FLOAT_COLUMNS
            tracked.arrival_s,
            tracked.arrival_s,
            prompt_tokens,
            prompt_tokens,
            0.0,
            math.nan,
            math.inf if slo.ttft_s is None else slo.ttft_s,
            math.inf if slo.tpot_s is None else slo.tpot_s,
            math.inf if slo.e2e_s is None else slo.e2e_s,
            tracked.weight,
            0.0,
            0.0,
        )
        self._class_id[row] = self._classes.acquire(slo.slo_class)
        self._tenant_id[row] = self.tenants.acquire(tracked.tenant)
        self._prefix_id[row] = NO_PREFIX
        self._quantiles[row] = tracked.quantiles
        self._tracked[tracked.request_id] = tracked
        self._row_of[tracked.request_id] = row

    def remove(self, request_id: str) -> Tracked | None:
        """Free the row of a request that ended; None when it is not tracked."""
        tracked = self._tracked.pop(request_id, None)
        if tracked is not None:
            del self._row_of[request_id]
            (self._left if self._held else self._free).append(tracked.row)
            self.tenants.release(tracked.tenant)
            self._classes.release(tracked.slo.slo_class)
        return tracked

    def hold(self) -> None:
        """Give no row to another request from now on: a snapshot of the table is built."""
        self._held = True

    def release(self) -> None:
        """Rows of requests that ended may be given away again."""
        if self._held:
            self._held = False
            self._free += self._left
            self._left.clear()

    def note_first_token(self, tracked: Tracked, now_s: float) -> None:
        """The request's first token left the engine at ``now_s``."""
        tracked.first_token_s = now_s
        self._floats[_FIRST_TOKEN, tracked.row] = now_s

    def note_yield(self, tracked: Tracked, now_s: float, generated: int) -> None:
        """The request gave up its slot: it queues anew, with everything to compute again."""
        tracked.queued_s = now_s
        self._floats[_QUEUED, tracked.row] = now_s
        self._floats[_PREFILL_LEFT, tracked.row] = tracked.prompt_tokens + generated
        self._floats[_GENERATED, tracked.row] = generated

    def note_cached(self, request_id: str, cached_tokens: int) -> None:
        """So many tokens of a waiting request's beginning are in the engine's prefix cache."""
        row = self._row_of[request_id]
        known = self._floats[_PROMPT, row] + self._floats[_GENERATED, row]
        cached = min(float(cached_tokens), known - 1.0)
        self._floats[_CACHED, row] = cached
        self._floats[_PREFILL_LEFT, row] = known - cached

    def note_quantiles(self, tracked: Tracked) -> None:
        """The request's length is estimated anew."""
        self._quantiles[tracked.row] = tracked.quantiles

    def note_prefix(self, request_id: str, prefix_id: int, prefix_tokens: int) -> None:
        """The request shares its first tokens with all others of this id."""
        row = self._row_of[request_id]
        self._prefix_id[row] = prefix_id
        self._floats[_PREFIX, row] = prefix_tokens

    def rows(self, request_ids: Sequence[str]) -> IntArray:
        """The rows ``(n,)`` of requests, -1 of those not tracked."""
        rows = map(self._row_of.get, request_ids, itertools.repeat(-1))
        return np.fromiter(rows, dtype=np.int64, count=len(request_ids))

    def tightest_tpot_s(self, above_s: float = 0.0) -> tuple[float | None, float]:
        """The smallest TPOT objective above this of all tracked (None: none has such a one); mean
        prompt tokens."""
        rows = np.fromiter(self._row_of.values(), dtype=np.int64, count=len(self._row_of))
        if not len(rows):
            return None, 0.0
        tpots_s = self._floats[_TPOT, rows]
        least = float(tpots_s[tpots_s > above_s].min(initial=math.inf))
        return (least if least < math.inf else None), float(self._floats[_PROMPT, rows].mean())

    def arrival_s(self, rows: IntArray) -> FloatArray:
        """Arrival times of rows ``(n,)``."""
        return self._floats[_ARRIVAL, rows]

    def arrays(self, rows: IntArray) -> RequestArrays:
        """The rows ``(n,)`` of tracked requests, in the given order, as copies."""
        floats = self._floats.take(rows, axis=1)
        return RequestArrays(
            **dict(zip(_FLOAT_COLUMNS, floats, strict=True)),
            class_id=self._class_id[rows],
            prefix_id=self._prefix_id[rows],
            quantiles=self._quantiles[rows],
        )

    def tenant_ids(self, rows: IntArray) -> IntArray:
        """The tenants' numbers of rows ``(n,)``."""
        return self._tenant_id[rows]

    def _grow(self) -> None:
        old = len(self._class_id)
        size = max(_FIRST_ROWS, 2 * old)
        self._floats = np.ascontiguousarray(_longer(self._floats.T, size).T)
        self._class_id = _longer(self._class_id, size)
        self._tenant_id = _longer(self._tenant_id, size)
        self._prefix_id = _longer(self._prefix_id, size)
        self._quantiles = _longer(self._quantiles, size)
        self._free.extend(range(size - 1, old - 1, -1))


def _longer(array: npt.NDArray[_Number], rows: int) -> npt.NDArray[_Number]:
    longer = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    longer[: len(array)] = array
    return longer
