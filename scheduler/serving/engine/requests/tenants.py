"""Who asks: tenant names from the wire, small numbers for the planner, tallies for the operator.

A tenant is whoever the ``x-tenant`` header or the xargs key ``tenant`` names; requests without
either are one tenant together. The header wins, since a gateway can set it for its clients. A
client that may name itself can also name itself anew for every request: fairness needs a gateway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.guards.fairness import jain_index
from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics, series

UNNAMED = "default"
MOST_TENANTS = 32
OTHER = "other"

_RECENT_S = 300.0  # tallies of the index fade by 1/e in this time


class TenantIds:
    """Small integers for the tenants that have requests here; free again after the last of them."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._ids: dict[str | None, int] = {}
        self._names: list[str | None] = []
        self._requests: list[int] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    def acquire(self, name: str | None) -> int:
        """The id of a tenant that has one more request."""
        number = self._ids.get(name)
        if number is None:
            if not self._free:
                self._free.append(len(self._names))
                self._names.append(None)
                self._requests.append(0)
            number = self._ids[name] = self._free.pop()
            self._names[number] = name
        self._requests[number] += 1
        return number

    def release(self, name: str | None) -> None:
        """The tenant has one request less."""
        number = self._ids[name]
        self._requests[number] -= 1
        if self._requests[number] == 0:
            del self._ids[name]
            self._free.append(number)

    def weights(self) -> FloatArray | None:
        """Weight of each id ``(k,)``; None when none is configured."""
        if not self._weights:
            return None
        return np.array([self._weights.get(name or UNNAMED, 1.0) for name in self._names])


@dataclass(slots=True)
class _Tally:
    attained: int = 0
    missed: int = 0
    served_s: float = 0.0
    recent_attained: float = 0.0
    recent_missed: float = 0.0
    recent_served_s: float = 0.0
    at_s: float = 0.0

    def fade(self, now_s: float) -> None:
        kept = math.exp(-max(now_s - self.at_s, 0.0) / _RECENT_S)
        self.recent_attained *= kept
        self.recent_missed *= kept
        self.recent_served_s *= kept
        self.at_s = now_s


class TenantTallies:
    """What each tenant got: of the first 32 by name, of the others together."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._tallies: dict[str, _Tally] = {}

    def reset(self) -> None:
        """Start afresh; the counters of ``/metrics`` go on."""
        self._tallies.clear()

    def note(self, tenant: str | None, met: bool | None, served_s: float, now_s: float) -> None:
        """A request ended: ``met`` None without an objective, ``served_s`` in a slot."""
        name = tenant or UNNAMED
        if name not in self._tallies and len(self._tallies) >= MOST_TENANTS:
            name = OTHER
        tally = self._tallies.setdefault(name, _Tally(at_s=now_s))
        tally.fade(now_s)
        tally.served_s += served_s
        tally.recent_served_s += served_s
        if met is None:
            return
        tally.attained += met
        tally.missed += not met
        tally.recent_attained += met
        tally.recent_missed += not met
        counter = self._metrics.tenant_attained if met else self._metrics.tenant_missed
        series(counter, name).inc()

    def jain(self, now_s: float) -> dict[str, float]:
        """Jain's index over tenants of recent attainment, and of recent slot-seconds."""
        for tally in self._tallies.values():
            tally.fade(now_s)
        judged = [(t.recent_attained, t.recent_missed) for t in self._tallies.values()]
        shares = [
            attained / (attained + missed) for attained, missed in judged if attained + missed
        ]
        served = [tally.recent_served_s for tally in self._tallies.values()]
        return {"attainment": jain_index(np.array(shares)), "served": jain_index(np.array(served))}

    def update_gauge(self, now_s: float) -> None:
        """Bring ``lengthwise_jain_index`` up to date."""
        for name, value in self.jain(now_s).items():
            self._metrics.jain.labels(name).set(value)

    def status(self, now_s: float) -> dict[str, Any]:
        """Plain values for ``GET /lengthwise/status``."""
        return {
            "jain_index": self.jain(now_s),
            "by_tenant": {
                name: {
                    "attained": tally.attained,
                    "missed": tally.missed,
                    "served_s": round(tally.served_s, 3),
                }
                for name, tally in sorted(self._tallies.items())
            },
        }
