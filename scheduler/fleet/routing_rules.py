"""The rules by which a request finds its instance: ours, and those of the peers.

A rule gets what is known, the request, the candidates' numbers and the time, and answers with one
of the candidates. Ties of the simple rules go round, so that none is always first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.gain import BY_SELECTION, CHANCE, FINISH_S, FIRST_S, GAIN, WORK_S
from lengthwise.scheduler.fleet.knowledge import Knowledge
from lengthwise.scheduler.fleet.known_requests import MEAN

MOST_SCORED = 8
SAMPLED = 4
MATCH_SHARE = 0.1  # of a prompt: from there on the prefix router follows the match


@dataclass(frozen=True, slots=True)
class Choice:
    """The instance, and what the score said of it where there was one."""

    instance: int
    gain: float | None = None
    chance: float | None = None


class Turns:
    """Whose turn it is among equals, and the randomness of the rules that draw."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._turn = 0

    def least(self, candidates: IntArray, load: FloatArray | IntArray) -> int:
        """The candidate of the least load; equals in turn."""
        self._turn += 1
        shift = self._turn % len(candidates)
        return int(np.roll(candidates, -shift)[np.argmin(np.roll(load, -shift))])


Rule = Callable[[Knowledge, FleetRequest, IntArray, float, Turns], Choice]


def round_robin(k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns) -> Choice:
    """One after the other."""
    return Choice(t.least(among, np.zeros(len(among))))


def power_of_two(k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns) -> Choice:
    """The less loaded of two drawn ones, by outstanding requests: Ray's own."""
    if len(among) == 1:
        return Choice(int(among[0]))
    first, second = int(t.rng.integers(len(among))), int(t.rng.integers(len(among) - 1))
    two = among[[first, second + (second >= first)]]
    return Choice(t.least(two, k.counts[two]))


def least_outstanding(
    k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns
) -> Choice:
    """The fewest outstanding requests."""
    return Choice(t.least(among, k.counts[among]))


def vllm_balance(k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns) -> Choice:
    """vLLM's own among data-parallel engines: who runs and waits, the latter more where KV is full.

    ``max(in flight, waiting + running) + 6 waiting max(0, KV usage - 0.5)``, by the last states and
    what was sent since.
    """
    counts, columns = k.rows.counts[among], k.rows.columns
    waiting = counts[:, fr.ALL] - counts[:, fr.RUNNING]
    held = np.array(
        [
            (columns.target[i, :n] - columns.left[i, :n]).sum()
            for i, n in zip(among.tolist(), counts[:, fr.RUNNING].tolist(), strict=True)
        ]
    )
    pressure = np.maximum(held / k.rows.engines[among, fr.KV_TOKENS] - 0.5, 0.0)
    load = np.maximum(k.counts[among], counts[:, fr.ALL]) + 6.0 * waiting * pressure
    return Choice(t.least(among, load))


def least_work(k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns) -> Choice:
    """The least predicted work, this request's own there included."""
    work_s = k.backlogs_s(now_s)[among] + own_work_s(k, r, among, k.all_cached(r, among))
    return Choice(t.least(among, work_s))


def own_work_s(
    k: Knowledge, request: FleetRequest, among: IntArray, cached: FloatArray
) -> FloatArray:
    """Seconds of each engine that the request would take, less the ``cached (c,)`` tokens."""
    need = float(k.known.columns.figures[k.known.slot(request.key), MEAN])
    prefill = k.rows.engines[among, fr.PREFILL_TOKEN_S] * (request.prompt_tokens - cached)
    return np.asarray(prefill + k.rows.figures[among, fr.ANSWER_TOKEN_S] * need)


def prefix_match(k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns) -> Choice:
    """The longest match of what was sent there before, from a tenth of the prompt on; else two."""
    if r.starts:
        sent = [k.members[i].sent_prefixes.tokens(r.starts) for i in among.tolist()]
        matched = np.minimum(sent, r.starts[-1][1])
        if matched.max() >= MATCH_SHARE * r.prompt_tokens:
            best = among[matched == matched.max()]
            return Choice(t.least(best, k.counts[best]))
    return power_of_two(k, r, among, now_s, t)


def free_memory(k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns) -> Choice:
    """The most KV memory left: the rule of the paper that the planner comes from."""
    capacity, used = k.rows.engines[among, fr.KV_TOKENS], k.rows.figures[among, fr.KV_USED]
    return Choice(t.least(among, used - capacity))


def predicted_latency(
    k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns
) -> Choice:
    """Where its own predicted TTFT and TPOT leave most of its objectives; llm-d's idea.

    Nobody else's harm counts. The prediction is our rollout's, which flatters the rule.
    """
    found = k.gains(r, among, now_s)
    need = float(k.known.columns.figures[k.known.slot(r.key), MEAN])
    first_s, finish_s = found[:, FIRST_S], found[:, FINISH_S]
    backlog_s = k.backlogs_s(now_s)[among] + found[:, WORK_S]
    unknown = ~np.isfinite(first_s)
    ttft_s = np.where(unknown, backlog_s + k.horizon_s(), first_s - r.arrival_s)
    pace_s = k.rows.figures[among, fr.TOKEN_S]
    with np.errstate(invalid="ignore"):
        seen_s = (finish_s - first_s) / max(need - 1.0, 1.0)
    tpot_s = np.where(np.isfinite(seen_s), seen_s, pace_s)
    e2e_s = ttft_s + tpot_s * max(need - 1.0, 0.0)
    headroom = np.minimum(
        np.minimum(share_left(r.ttft_s, ttft_s), share_left(r.tpot_s, tpot_s)),
        share_left(r.e2e_s, e2e_s),
    )
    if not r.has_objective:
        headroom = -e2e_s
    return Choice(t.least(among, -headroom))


def share_left(objective_s: float, predicted_s: FloatArray) -> FloatArray:
    """The share of an objective that the prediction leaves; 1 where there is none."""
    if not np.isfinite(objective_s):
        return np.ones(len(predicted_s))
    return np.asarray(1.0 - predicted_s / max(objective_s, 1e-9))


def most_gain(k: Knowledge, r: FleetRequest, among: IntArray, now_s: float, t: Turns) -> Choice:
    """Where the fleet's expected attainment rises most.

    Among equals the least predicted work decides; the fewest outstanding among engines of one kind
    that plan, since what a plan will have them do first is not in the prediction.
    Of many candidates those of the least work are scored, and the one that has most of its prefix.
    A request can hardly bring more than itself: where the first candidate brings that,
    it is the choice whatever the others are worth, and they are not asked.
    """
    cached = k.all_cached(r, among)
    work_s = k.backlogs_s(now_s)[among] + own_work_s(k, r, among, cached)
    if len(among) > MOST_SCORED:
        few = np.argpartition(work_s, SAMPLED)[:SAMPLED]
        if cached.any():
            few = np.union1d(few, int(np.argmax(cached)))
        among, work_s = among[few], work_s[few]
    if k.order == BY_SELECTION and k.are_alike(among):
        among = among[np.lexsort((work_s, k.counts[among]))]
    else:
        among = among[np.argsort(work_s, kind="stable")]
    enough = (1.0 - k.near) * r.weight if r.has_objective and r.weight > 0.0 else np.inf
    found = k.gains(r, among, now_s, enough)
    gain = found[:, GAIN]
    chosen = int(np.argmax(gain >= gain.max() - k.near * max(r.weight, 1e-9)))
    return Choice(int(among[chosen]), float(gain[chosen]), float(found[chosen, CHANCE]))


ROUTING_RULES: dict[str, Rule] = {
    "round-robin": round_robin,
    "power-of-two": power_of_two,
    "least-outstanding": least_outstanding,
    "vllm": vllm_balance,
    "least-work": least_work,
    "prefix": prefix_match,
    "free-memory": free_memory,
    "predicted-latency": predicted_latency,
    "gain": most_gain,
}
# those that ask only the ledger, and need no state of any instance
BY_LEDGER = frozenset({"round-robin", "power-of-two", "least-outstanding", "prefix"})
