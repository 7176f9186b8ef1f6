"""The routers by name."""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.fleet.fleet_router import FleetRouter
from lengthwise.scheduler.fleet.late_binding import SEARCH_STEPS, LateRouter
from lengthwise.scheduler.fleet.routing_rules import ROUTING_RULES

LATE = {"gain-late": SEARCH_STEPS, "gain-late-list": 0}  # steps of the joint search
ROUTERS = (*ROUTING_RULES, *LATE)


def make_router(
    name: str,
    levels: FloatArray,
    *,
    policy: str,
    rng: np.random.Generator,
    began_s: float | None = None,
    max_wait_s: float = MAX_WAIT_S,
) -> FleetRouter:
    """The router called ``name``, one of ROUTERS; see `FleetRouter` and `LateRouter`.

    Raises ValueError for an unknown name.
    """
    if name not in ROUTERS:
        raise ValueError(f"unknown router {name!r}; known are {', '.join(ROUTERS)}")
    if name in LATE:
        return LateRouter(
            levels, policy=policy, rng=rng, began_s=began_s, steps=LATE[name], max_wait_s=max_wait_s
        )
    return FleetRouter(levels, name, policy=policy, rng=rng, began_s=began_s)
