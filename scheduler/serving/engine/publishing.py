"""What this engine tells routers of its requests, answered between two steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.state_message import Published, PublishedRow
from lengthwise.scheduler.problem import RequestArrays
from lengthwise.scheduler.profile import EngineProfile, PrefixCache, Speculation
from lengthwise.scheduler.serving.engine.core import Core
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.requests.request_table import Tracked
from lengthwise.scheduler.serving.wire.fleet_key import front_of

_MOST_ROWS = 2048  # of a queue beyond, those that are served last are left out


class Publisher:
    """States of one engine, numbered from its start."""

    def __init__(
        self, core: Core, *, caches_prefixes: bool, block_tokens: int, draft_tokens: int
    ) -> None:
        self._core = core
        self._cache = PrefixCache(block_tokens) if caches_prefixes else None
        self._draft_tokens = draft_tokens
        self._epoch = time.time_ns() // 1_000_000
        self._sequence = 0

    def message(self, running: Running, now_s: float) -> dict[str, Any]:
        """Who runs, recovers and waits, as plain values.

        Requests are named by the router's keys. They are described where more than one router
        has sent some, and where none has: no reader knows all of them then.
        """
        core = self._core
        self._sequence += 1
        generated = dict(zip(running.ids, running.generated_tokens, strict=True))
        left = dict(zip(running.ids, running.prefill_left_tokens, strict=True))
        found: list[Tracked] = []
        counts: list[int] = []
        for ids in (running.ids, core.queue.recovery_ids(), core.queue.plannable_ids()):
            tracked = (one for name in ids if (one := core.table.get(name)) is not None)
            found += itertools.islice(tracked, max(0, _MOST_ROWS - len(found)))
            counts.append(len(found) - sum(counts))
        named = _with_keys(found)
        arrays = core.table.arrays(core.table.rows([one.request_id for one, _ in named]))
        rows = []
        for place, (one, key) in enumerate(named):
            name, runs = one.request_id, place < counts[0]
            done = generated[name] if runs else core.generated_tokens(name) or 0
            since_s = None if one.first_token_s is None else now_s - one.first_token_s
            to_compute = left[name] if runs else arrays.prefill_left_tokens[place]
            if counts[0] <= place < counts[0] + counts[1]:
                to_compute = one.prompt_tokens + done  # what was preempted computes all again
            rows.append(
                PublishedRow(
                    key, float(done), float(to_compute), float(arrays.cached_tokens[place]), since_s
                )
            )
        several = len({front_of(one.fleet_key) for one, _ in named} - {None}) > 1
        others = _described(named, arrays, now_s, every=several)
        return Published(
            self._epoch,
            self._sequence,
            now_s,
            self._profile(),
            rows,
            counts[0],
            counts[1],
            others,
            draining=core.decisions.paused,
            about=self._about(len(core.queue)),
            limits=core.decisions.in_force.limits,
        ).to_message()

    def _profile(self) -> EngineProfile:
        core = self._core
        drafts = None
        if self._draft_tokens:
            drafts = Speculation(core.tokens_per_step.mean, self._draft_tokens)
        step_time = core.planner.step_time
        return EngineProfile(
            step_time.name,
            step_time,
            core.planner.capacity,
            "published",
            prefix_cache=self._cache,
            speculation=drafts,
        )

    def _about(self, waiting: int) -> dict[str, Any]:
        core = self._core
        return {
            "policy": core.planner.policy.name,
            "lengths": core.intake.lengths,
            "predictor_dir": core.intake.predictor_dir,
            "predictor_version": core.intake.version or core.settings.predictor_version,
            "waiting": waiting,
            "tracked": len(core.table),
        }


def _with_keys(tracked: Sequence[Tracked]) -> list[tuple[Tracked, int]]:
    """Each with its key; one that no router named, and further samples of one, get a negative."""
    taken: set[int] = set()
    named = []
    for one in tracked:
        key = one.fleet_key
        if key is None or key in taken:
            said = blake2b(one.request_id.encode("utf-8", "replace"), digest_size=7).digest()
            key = -1 - int.from_bytes(said)
        taken.add(key)
        named.append((one, key))
    return named


def _described(
    named: Sequence[tuple[Tracked, int]], arrays: RequestArrays, now_s: float, *, every: bool
) -> list[FleetRequest]:
    return [
        FleetRequest(
            key,
            now_s - one.arrival_s,
            float(arrays.prompt_tokens[place]),
            np.asarray(one.quantiles, dtype=np.float64),
            float(arrays.ttft_s[place]),
            float(arrays.tpot_s[place]),
            float(arrays.e2e_s[place]),
            float(arrays.weight[place]),
        )
        for place, (one, key) in enumerate(named)
        if every or key < 0
    ]
