"""Late binding: what would only wait is held at the router, and sent as each instance admits it.

A request that an instance would begin within ``ahead_s`` is sent at once. The others stay here:
assignment and order are found together (`joint_plan`) at every look, so that each choice is made
when it has to be made, and what is held is lost with no instance. Where the knowledge is too old
for a plan, everything is sent as it comes.
"""

from __future__ import annotations

import logging

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.fleet_router import Decision, FleetRouter, NoInstanceError
from lengthwise.scheduler.fleet.gain import NEAR
from lengthwise.scheduler.fleet.joint_plan import UNIFORMS, JointPlan, plan_lines
from lengthwise.scheduler.fleet.known_requests import ARRIVAL, E2E_BY, MEAN, TTFT_BY

log = logging.getLogger(__name__)

CELL = 16  # instances that are planned together
MOST_PLANNED = 96  # held requests a cell that are planned; the rest wait for a later look
SEARCH_STEPS = 48
LOOK_S = 0.05  # least time between two looks at what is held


class LateRouter(FleetRouter):
    """A router that holds back what need not be sent yet; see `FleetRouter` for the rest.

    ``ahead_s`` is how far ahead an instance is kept supplied: the age of its state, the way to it
    and a step. ``steps`` of annealing a plan, 0 for the list schedule alone. Who has waited for
    ``max_wait_s`` is sent at once.
    """

    def __init__(
        self,
        levels: FloatArray,
        rule: str = "gain",
        *,
        policy: str = "sa",
        rng: np.random.Generator | None = None,
        began_s: float | None = None,
        ahead_s: float = 0.3,
        steps: int = SEARCH_STEPS,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        if not ahead_s > 0 or steps < 0 or not max_wait_s > 0:
            raise ValueError(
                "need ahead_s > 0, steps >= 0 and max_wait_s > 0, got "
                f"{ahead_s}, {steps} and {max_wait_s}"
            )
        super().__init__(levels, rule, policy=policy, rng=rng, began_s=began_s)
        self.ahead_s, self.steps, self.max_wait_s = ahead_s, steps, max_wait_s
        self._held: dict[int, FleetRequest] = {}  # by slot
        self._draws = np.random.default_rng(int(self._turns.rng.integers(2**32)))
        self._looked_s = -np.inf
        self.plans = 0
        self.plan_gain = 0.0  # what the search has added to the list schedules, in all

    @property
    def held(self) -> int:
        """Requests that are held back here."""
        return len(self._held)

    def held_keys(self) -> list[int]:
        """The requests that are held back here."""
        return [request.key for request in self._held.values()]

    def completed(self, key: int, now_s: float) -> None:
        """A request has ended, well or not, or its client has left while it was held."""
        if key in self.knowledge.known:
            if self._held.pop(self.knowledge.known.slot(key), None) is None:
                super().completed(key, now_s)
            else:
                self.knowledge.known.forget(key)

    def offer(self, request: FleetRequest, now_s: float) -> list[Decision]:
        """A request has come; what is sent now, others that were held included."""
        if not len(self.knowledge.open(now_s)):
            raise NoInstanceError("no instance is alive and open to requests")
        looks = not self._held or now_s - self._looked_s >= LOOK_S
        self._held[self.knowledge.meet(request)] = request
        return self.release(now_s) if looks else []

    def release(self, now_s: float) -> list[Decision]:
        """What is held back and may go now."""
        among = self.knowledge.open(now_s)
        if not self._held or not len(among):
            return []
        self._looked_s = now_s
        if len(among) == 1 or self.rung(among, now_s) != "score":  # no choice, or nothing to go by
            return [self._sent_as_it_comes(slot, among, now_s) for slot in list(self._held)]
        overdue = [s for s, r in self._held.items() if now_s - r.arrival_s >= self.max_wait_s]
        sent = [self._sent_as_it_comes(slot, among, now_s) for slot in overdue]
        if not self._held:
            return sent
        for cell, slots in self._cells(among, self._ranked(now_s), now_s):
            sent += self._sent_by_plan(cell, slots, now_s)
        return sent

    def _ranked(self, now_s: float) -> IntArray:
        """The held slots: whom the time suffices for, by latest start; then the others by age."""
        slots = np.fromiter(self._held, dtype=np.int64, count=len(self._held))
        k = self.knowledge
        f = k.known.columns.figures[slots]
        token_s = float(np.median(k.rows.figures[: len(k.members), fr.TOKEN_S]))
        latest_s = np.minimum(f[:, TTFT_BY], f[:, E2E_BY] - token_s * f[:, MEAN])
        late = latest_s < now_s
        return np.asarray(slots[np.lexsort((np.where(late, f[:, ARRIVAL], latest_s), late))])

    def _cells(
        self, among: IntArray, ranked: IntArray, now_s: float
    ) -> list[tuple[IntArray, IntArray]]:
        """(instances, held slots) of each cell; requests go to the cell of the least work."""
        count = -(-len(among) // CELL)
        if count == 1:
            return [(among, ranked[:MOST_PLANNED])]
        cells = [among[c::count].copy() for c in range(count)]
        backlog_s = self.knowledge.backlogs_s(now_s)
        load = np.array([backlog_s[cell].mean() for cell in cells])
        share_s = self.knowledge.mean_work_s(among).mean() / len(cells[0])
        of_cell: list[list[int]] = [[] for _ in cells]
        for slot in ranked[: MOST_PLANNED * count].tolist():
            c = int(np.argmin(load))
            of_cell[c].append(slot)
            load[c] += share_s
        pairs = zip(cells, of_cell, strict=True)
        return [(cell, np.array(own, dtype=np.int64)) for cell, own in pairs if own]

    def _sent_by_plan(self, cell: IntArray, slots: IntArray, now_s: float) -> list[Decision]:
        """Plan the cell and send whom its instances would begin soon."""
        k = self.knowledge
        try:
            plan = self._plan(cell, slots, now_s)
        except Exception:  # advice, as every plan: they are sent whatever it does
            log.exception("the joint plan failed; its requests are sent as they come")
            self.errors += 1
            return [self._sent_as_it_comes(slot, cell, now_s) for slot in slots.tolist()]
        sent = []
        for place, instance in enumerate(cell.tolist()):
            for h in plan.sendable(place).tolist():
                slot = int(slots[h])
                if plan.gain[h] < -NEAR:
                    continue  # it would cost the others there more than it gains
                request = self._held.pop(slot)
                k.send(request, instance, now_s)
                self.decisions["planned"] += 1
                sent.append(Decision(request.key, instance, "score"))
        return sent

    def _plan(self, cell: IntArray, slots: IntArray, now_s: float) -> JointPlan:
        k = self.knowledge
        cached = np.zeros((len(slots), len(cell)))
        for h, slot in enumerate(slots.tolist()):
            if self._held[slot].prefix >= 0:
                cached[h] = k.all_cached(self._held[slot], cell)
        k.make_room(int(k.rows.counts[cell, fr.ALL].max()) + len(slots))
        plan = plan_lines(
            k.rows, k.known.columns, cell, slots, cached, k.weighing(now_s), self.ahead_s,
            self._draws.random((self.steps, UNIFORMS)), k.scratch,
        )  # fmt: skip
        self.plans += 1
        self.plan_gain += plan.value - plan.start_value
        return plan

    def _sent_as_it_comes(self, slot: int, among: IntArray, now_s: float) -> Decision:
        request = self._held.pop(slot)
        rung, choice = self.chosen(request, among, now_s)
        self.knowledge.send(request, choice.instance, now_s)
        return Decision(request.key, choice.instance, rung, choice.gain, choice.chance)
