"""What the router knows of its instances: their last states, and what it has sent them since."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.beginnings import Beginning
from lengthwise.scheduler.fleet.fleet_request import FleetRequest, InstanceState
from lengthwise.scheduler.fleet.gain import (
    BY_SELECTION,
    NEAR,
    NEAR_OF_PLANS,
    Weighing,
    backlogs_s,
    book_row,
    gains,
    scratch_for,
)
from lengthwise.scheduler.fleet.known_prefixes import PrefixMemory
from lengthwise.scheduler.fleet.known_requests import (
    CACHED,
    MEAN,
    SENT,
    KnownRequests,
)
from lengthwise.scheduler.fleet.ledger import Ledger
from lengthwise.scheduler.profile import EngineProfile

SILENT_AFTER_S = 5.0  # with requests on it and neither a state nor an end heard
SPREAD = 0.15  # of a predicted time: pace and lengths are another's, and the state is old
ALIKE = 0.25  # share by which the figures of engines of one kind may differ
SENT_ROOM = 16  # times an instance's memory: of what it was sent, so much is remembered
FORGETS = 0.02  # weight of a new request in the running means
SHORTEST_HORIZON_S, LONGEST_HORIZON_S = 8.0, 40.0
DEFAULT_OBJECTIVE_S = 10.0


@dataclass(slots=True)
class Member:
    """One instance: what it is, and the last word of it."""

    name: str
    profile: EngineProfile
    joined_s: float
    alive: bool = True
    epoch: int | None = None
    sequence: int = -1
    cached_prefixes: Mapping[int, float] | None = None  # None: it does not say
    sent_prefixes: PrefixMemory = field(default_factory=PrefixMemory)
    begun_prefixes: PrefixMemory = field(default_factory=PrefixMemory)


class Knowledge:
    """Instances by number, their requests as rows, and the ledger; times are arguments.

    ``levels (q,)`` are those of all requests' quantiles. ``order`` is how the instances serve:
    `gain.BY_ARRIVAL` or `gain.BY_SELECTION`.
    """

    def __init__(self, levels: FloatArray, order: int) -> None:
        self.known = KnownRequests(levels)
        self.ledger = Ledger()
        self.members: list[Member] = []
        self.order = order
        # of each instance: whether it may be sent to, when its last state was taken, when anything
        # came from it (-inf for never), and its requests that have not ended
        self.usable = np.zeros(0, dtype=np.bool_)
        self.heard_s, self.sign_s = np.zeros(0), np.zeros(0)
        self.counts = np.zeros(0, dtype=np.int64)
        self.rows = fr.empty_rows(0)
        self.scratch = scratch_for(fr.FIRST_ROOM)
        self.mean_prompt, self.mean_need, self.mean_objective_s = 0.0, 0.0, 0.0
        self._met = 0
        self._weighed: int | None = None  # the request that was weighed last
        self.remembers_sent = False  # which beginnings went where, for a rule that asks
        self.unknown_rows = 0  # listed by an instance, and nobody has said what they are
        self.lost_bookings = 0  # sent, and never seen on the instance

    def add(self, name: str, profile: EngineProfile, now_s: float) -> int:
        """A new instance, empty as far as is known; its number."""
        i = len(self.members)
        self.members.append(Member(name, profile, now_s))
        self.usable = np.append(self.usable, True)
        self.heard_s, self.sign_s = np.append(self.heard_s, -np.inf), np.append(self.sign_s, now_s)
        self.counts = np.append(self.counts, 0)
        self.rows = fr.grown_rows(self.rows, i + 1, fr.FIRST_ROOM)
        fr.set_engine(self.rows, i, profile)
        self.rows.figures[i, fr.BEGIN_S] = now_s
        fr.full_batch(self.rows, i, max(self.mean_prompt, 1.0), max(self.mean_need, 1.0))
        return i

    def change(self, i: int, profile: EngineProfile) -> None:
        """The instance is of another kind than was thought; its next state is reckoned with it."""
        member = self.members[i]
        if member.alive and profile != member.profile:
            member.profile = profile
            fr.change_engine(self.rows, i, profile)

    def presume(self, profile: EngineProfile) -> None:
        """Instances that have said nothing yet are taken to be of this kind, as their peer is.

        What was sent there is reckoned anew: held against a peer's own figures, a guess of another
        kind of engine would draw or keep away all requests.
        """
        for i, member in enumerate(self.members):
            if not member.alive or member.epoch is not None or profile == member.profile:
                continue
            member.profile = profile
            fr.change_engine(self.rows, i, profile)
            begin_s = float(self.rows.figures[i, fr.BEGIN_S])
            booked = self.known.slots(self.ledger.keys(i))
            self._place(i, begin_s, self.known.slots([]), 0, 0, np.empty((4, 0)), booked)

    def remove(self, i: int) -> list[int]:
        """The instance is gone; the keys of what was booked there, which nobody knows any more."""
        self.members[i].alive = self.usable[i] = False
        keys = self.ledger.drop(i)
        self.counts[i] = 0
        for key in keys:
            self.known.forget(key)
        self.rows.counts[i] = 0
        self.rows.figures[i, [fr.SEEN_WORK_S, fr.BOOKED_WORK_S, fr.KV_USED]] = 0.0
        return keys

    def observe(
        self, i: int, state: InstanceState, others: Sequence[FleetRequest] = ()
    ) -> list[int]:
        """Take in an instance's state; the keys of what an earlier life of it had, lost with that.

        An older state than one already seen says nothing. ``others`` describes rows that came by
        another router.
        """
        member = self.members[i]
        if not member.alive:
            return []
        orphans: list[int] = []
        if member.epoch is not None and state.epoch != member.epoch:
            if state.epoch < member.epoch:
                return []
            orphans = self._began_anew(i, state)
        elif state.sequence <= member.sequence:
            return []
        member.epoch, member.sequence = state.epoch, state.sequence
        self.heard_s[i], self.sign_s[i] = state.taken_s, max(self.sign_s[i], state.taken_s)
        self.usable[i], member.cached_prefixes = not state.draining, state.cached_prefixes
        for other in others:
            if other.key not in self.known:
                self.known.add(other)
                self.ledger.book(other.key, i, other.arrival_s)
        keys = state.keys.tolist()
        settled = self.ledger.settle(i, set(keys), state.taken_s)
        for key in settled.gone:
            self.known.forget(key)
        self.counts[i] = self.ledger.outstanding(i)
        self.rows.limits[i] = state.limits
        self.lost_bookings += len(settled.lost)
        slots = self.known.slots(keys)
        if state.cached_prefixes is None and member.profile.prefix_cache is not None:
            past = slots[: state.running][state.prefill_left_tokens[: state.running] <= 0.0]
            for starts in self.known.newly_begun(past.tolist()):
                self._note_begun(i, starts)
        self.unknown_rows += int((slots < 0).sum()) if len(slots) else 0
        booked = self.known.slots(settled.unseen)
        self.make_room(len(slots) + len(booked))
        progress = np.empty((4, len(slots)))
        progress[0], progress[1] = state.generated_tokens, state.prefill_left_tokens
        progress[2], progress[3] = state.cached_tokens, state.first_token_s
        self._place(i, state.taken_s, slots, state.running, state.recovering, progress, booked)
        return orphans

    def _place(
        self, i: int, taken_s: float, slots: IntArray, running: int, recovering: int,
        progress: FloatArray, booked: IntArray,
    ) -> None:  # fmt: skip
        """See `fleet_rows.place`; for requests of the mean size."""
        fr.place(
            self.rows, self.known.columns, i, taken_s, slots, running, recovering, progress,
            booked, max(self.mean_prompt, 1.0), max(self.mean_need, 1.0),
        )  # fmt: skip

    def _began_anew(self, i: int, state: InstanceState) -> list[int]:
        """The instance has restarted: what it had before is not there.

        What was sent after the state was taken is on its way to the new life.
        """
        listed = set(state.keys.tolist())
        orphans = [
            key
            for key in self.ledger.keys(i)
            if key not in listed and self.ledger.sent_s(key) <= state.taken_s
        ]
        for key in orphans:
            self.ledger.end(key)
            self.known.forget(key)
        self.members[i].sent_prefixes = PrefixMemory()
        self.members[i].begun_prefixes = PrefixMemory()
        return orphans

    def _note_begun(self, i: int, starts: Sequence[Beginning]) -> None:
        """These beginnings of a prompt are computed there."""
        member = self.members[i]
        member.begun_prefixes.note(starts, float(member.profile.capacity.kv_tokens))

    def meet(self, request: FleetRequest) -> int:
        """A request is to be sent: its slot, and the running means with it."""
        slot = self.known.add(request)
        self._met += 1
        share = max(FORGETS, 1.0 / self._met)
        need = float(self.known.columns.figures[slot, MEAN])
        objective_s = min(request.ttft_s, request.e2e_s)
        if not math.isfinite(objective_s):
            objective_s = self.mean_objective_s or DEFAULT_OBJECTIVE_S
        self.mean_prompt += share * (request.prompt_tokens - self.mean_prompt)
        self.mean_need += share * (need - self.mean_need)
        self.mean_objective_s += share * (objective_s - self.mean_objective_s)
        return slot

    def send(self, request: FleetRequest, i: int, now_s: float) -> float:
        """Book a request that was met on instance ``i``; the seconds of work it is there."""
        self.ledger.book(request.key, i, now_s)
        if not self.counts[i]:  # what was idle had nothing to say
            self.sign_s[i] = max(self.sign_s[i], now_s)
        self.counts[i] += 1
        slot = self.known.slot(request.key)
        cached = self.cached_tokens(i, request)
        figures = self.known.columns.figures
        figures[slot, SENT], figures[slot, CACHED] = now_s, cached
        member = self.members[i]
        if self.remembers_sent:
            room = SENT_ROOM * member.profile.capacity.kv_tokens
            member.sent_prefixes.note(request.starts, room)
        self.make_room(int(self.rows.counts[i, fr.ALL]))
        if request.key != self._weighed:  # what is kept of the slot may be another's
            self.rows.valued[i, fr.WITH_SLOT] = np.nan
        return book_row(self.rows, self.known.columns, i, slot, now_s, cached)

    def completed(self, key: int, now_s: float) -> int | None:
        """The request has ended; its instance, None where that was known already."""
        i = self.ledger.end(key)
        if i is None:
            return None
        slot = self.known.slot(key)
        fr.remove_rows(self.rows, i, slot)
        member = self.members[i]
        if member.cached_prefixes is None and member.profile.prefix_cache is not None:
            self._note_begun(i, self.known.starts(slot))
        self.known.forget(key)
        self.counts[i] -= 1
        self.sign_s[i] = max(self.sign_s[i], now_s)
        return i

    def open(self, now_s: float) -> IntArray:
        """The instances that may be sent to: alive, not draining, and not silent under load.

        When all are silent, all that live are open: the silence is then more likely ours.
        """
        silent = self.silent(now_s)
        heard = np.flatnonzero(self.usable & ~silent)
        return heard if len(heard) else np.flatnonzero(self.usable)

    def silent(self, now_s: float) -> BoolArray:
        """Of each instance whether nothing has come for long though it has requests."""
        return np.asarray((now_s - self.sign_s > SILENT_AFTER_S) & (self.counts > 0))

    def are_heard(self, candidates: IntArray, since_s: float) -> bool:
        """Whether the last states of at least half of the candidates are from ``since_s`` on."""
        return bool(2 * (self.heard_s[candidates] >= since_s).sum() >= len(candidates))

    def backlogs_s(self, now_s: float) -> FloatArray:
        """Seconds of predicted work left on every instance, ``(m,)``."""
        out = np.empty(len(self.members))
        backlogs_s(self.rows, now_s, out)
        return out

    def cached_tokens(self, i: int, request: FleetRequest) -> float:
        """Prompt tokens that the request would find computed on the instance, whole blocks."""
        member = self.members[i]
        cache = member.profile.prefix_cache
        if cache is None or not request.starts:
            return 0.0
        if member.cached_prefixes is None:
            there = member.begun_prefixes.tokens(request.starts)
        else:
            there = member.cached_prefixes.get(request.prefix, 0.0)
        most = min(there, request.starts[-1][1], request.prompt_tokens - 1.0)
        return float(most // cache.block_tokens * cache.block_tokens)

    def mean_work_s(self, among: IntArray) -> FloatArray:
        """Seconds of each engine that a request takes on the mean."""
        token_s = self.rows.figures[among, fr.ANSWER_TOKEN_S]
        work_s = (
            self.rows.engines[among, fr.PREFILL_TOKEN_S] * self.mean_prompt
            + token_s * self.mean_need
        )
        return np.asarray(np.maximum(work_s, 1e-9))

    def all_cached(self, request: FleetRequest, candidates: IntArray) -> FloatArray:
        """Prompt tokens that the request would find on each of the candidates."""
        if not request.starts:
            return np.zeros(len(candidates))
        return np.array([self.cached_tokens(i, request) for i in candidates.tolist()])

    @property
    def near(self) -> float:
        """Gains that differ by less of a met request are equal."""
        return NEAR_OF_PLANS if self.order == BY_SELECTION else NEAR

    def are_alike(self, among: IntArray) -> bool:
        """Whether these are engines of one kind, whose fitted times may differ a little."""
        engines = self.rows.engines[among]
        return bool(np.allclose(engines, engines[0], rtol=ALIKE))

    def horizon_s(self) -> float:
        """How far ahead a choice is judged."""
        return min(max(self.mean_objective_s, SHORTEST_HORIZON_S), LONGEST_HORIZON_S)

    def weighing(self, now_s: float) -> Weighing:
        """How plans are valued now."""
        return Weighing(
            now_s,
            self.horizon_s(),
            self.order,
            self.mean_prompt,
            self.mean_need,
            SPREAD,
        )

    def gains(
        self,
        request: FleetRequest,
        candidates: IntArray,
        now_s: float,
        enough: float = math.inf,
    ) -> FloatArray:
        """``(c, 5)``: see `gain.gains`; of a request that was met.

        Of the first candidate alone where its gain is ``enough``.
        """
        found = np.empty((len(candidates), 5))
        self._weighed = request.key
        cached = self.all_cached(request, candidates)
        self.make_room(int(self.rows.counts[candidates, fr.ALL].max()))
        asked = gains(
            self.rows, self.known.columns, candidates, self.known.slot(request.key), cached,
            self.weighing(now_s), self.scratch, enough, found,
        )  # fmt: skip
        return found[:asked]

    def make_room(self, rows: int) -> None:
        """For so many rows an instance, and one more."""
        if rows + 1 > self.rows.owner.shape[1]:
            self.rows = fr.grown_rows(self.rows, len(self.members), rows + 1)
        if rows + 1 > len(self.scratch.order):
            self.scratch = scratch_for(self.rows.owner.shape[1])
