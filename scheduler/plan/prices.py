"""What work is worth in met requests, by how much of it waits, and whether an overload lasts."""

from __future__ import annotations

import numpy as np

from lengthwise.scheduler.plan.rollout.rows import Snapshot

OVERLOAD = 1.2  # load from which on a backlog stays, whatever is done


def overload_lasts(shot: Snapshot, arrival_rate_rps: float) -> bool:
    """Whether more comes than can be served, by the work of those expected and the rate lately.

    Who queues says nothing of it: the long ones are put off, and stay.
    """
    work_s = shot.work_s[shot.expected :]
    return len(work_s) > 0 and arrival_rate_rps * float(work_s.mean()) >= OVERLOAD


def work_price(
    shot: Snapshot,
    arrival_rate_rps: float,
    horizon_s: float,
    max_wait_s: float,
    base: float,
    backlog: float,
    bound: float,
) -> float:
    """What a request's mean work is worth in met requests, by how much of it waits.

    A plan of seconds does not see who will wait for what it puts off, so the price of work grows
    from ``base`` with what has been put off already (drift plus penalty, Neely 2010). Where the
    engine could keep up, all who come later wait for it, on the scale of the horizon, which is
    that of their objectives (``backlog``); and at any load, who has waited for ``max_wait_s`` goes
    before all others, met or not (``bound``).
    """
    work_s = shot.work_s[shot.waiting :]  # of those waiting, then those expected
    waits_s = float(work_s[: shot.expected - shot.waiting].sum())
    load = arrival_rate_rps * float(work_s.mean())
    may_end = float(np.clip((OVERLOAD - load) / (OVERLOAD - 1.0), 0.0, 1.0))
    late = backlog * may_end * waits_s / horizon_s
    return base * (1.0 + late + bound * waits_s / max_wait_s)
