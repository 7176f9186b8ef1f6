"""The emulated device without vLLM: when its steps end, and what its requests answer."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class DeviceClock:
    """Ends of the steps that a device runs one after another.

    A profile's step time is measured from one step's end to the next one's, host work included.
    So a step that continues the one before starts at that one's end, however late the host asks
    for it: it lasts max(profile, host). What the host lost is not made up for later.
    """

    def __init__(self) -> None:
        self._free_at_s = float("-inf")

    def enqueue(self, now_s: float, step_s: float, continues: bool) -> tuple[float, bool]:
        """When a step asked for at ``now_s`` ends, and whether that was late.

        ``continues``: the engine did not rest before it. Late: asked for after it should have
        ended.
        """
        start_s = self._free_at_s if continues else max(now_s, self._free_at_s)
        end_s = start_s + step_s
        self._free_at_s = max(now_s, end_s)
        return self._free_at_s, end_s < now_s


@dataclass(slots=True)
class Answer:
    """One request: tokens of its prompt, of its answer (None: until vLLM stops it)."""

    prompt_tokens: int
    length: int | None
    eos: int
    first: int  # where among the filler tokens its answer begins
    sampled: int  # output tokens so far
    owed: float = 0.0  # tokens that speculation has earned and not yet given


class Scheduled(NamedTuple):
    """A request's part of a step, in tokens: computed before it, taken on now, drafts of those."""

    req_id: str
    computed: int
    tokens: int
    drafts: int = 0


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step does, as a profile's step time counts it, and a list of tokens per request."""

    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    req_ids: list[str]
    sampled: list[list[int]]


class Answers:
    """The device's requests, and the tokens that they get.

    The step that computes a request's last known token samples the next one; a chunk of a prompt
    samples nothing. Where the scheduler sends ``drafts`` along, ``accepted_tokens`` come a step on
    the mean, the sampled one included, spread evenly over the request's steps.
    """

    def __init__(self, fillers: Sequence[int], accepted_tokens: float = 1.0) -> None:
        if not fillers:
            raise ValueError("an emulated device needs at least one filler token, got none")
        self._fillers = list(fillers)
        self._accepted = accepted_tokens
        self._answers: dict[str, Answer] = {}

    def add(
        self, req_id: str, prompt_tokens: int, length: int | None, eos: int, sampled: int = 0
    ) -> None:
        """A request that will be scheduled, with ``sampled`` tokens of its answer known."""
        first = zlib.crc32(req_id.encode())
        self._answers[req_id] = Answer(prompt_tokens, length, eos, first, sampled)

    def resume(self, req_id: str, sampled: int) -> None:
        """A request that was preempted is scheduled again, with so many tokens known.

        Those still under way when it was preempted may have been dropped: they come again.
        """
        self._answers[req_id].sampled = sampled

    def drop(self, req_ids: Iterable[str]) -> None:
        """Forget requests that ended, whether finished or aborted."""
        for req_id in req_ids:
            self._answers.pop(req_id, None)

    def __len__(self) -> int:
        return len(self._answers)

    def step(self, scheduled: Iterable[Scheduled]) -> StepWork:
        """Run one step; one token taken on beside its drafts is a decode.

        A decode's context are the tokens known before the step.
        """
        prefill_tokens = decode_seqs = context_tokens = 0
        req_ids: list[str] = []
        sampled: list[list[int]] = []
        for req_id, computed, tokens, drafts in scheduled:
            answer = self._answers[req_id]
            known = answer.prompt_tokens + answer.sampled
            reached = computed + tokens
            if tokens - drafts == 1:
                decode_seqs += 1
                # drafts under way count as computed until they are rejected
                context_tokens += min(reached, known)
            else:
                prefill_tokens += tokens
            req_ids.append(req_id)
            sampled.append(self._sample(answer, drafts) if reached >= known else [])
        return StepWork(prefill_tokens, decode_seqs, context_tokens, req_ids, sampled)

    def _sample(self, answer: Answer, drafts: int) -> list[int]:
        count = 1
        if drafts:
            answer.owed += self._accepted
            count = max(1, min(int(answer.owed), 1 + drafts))
            answer.owed -= count
        if answer.length is not None:
            count = max(1, min(count, answer.length - answer.sampled))
        numbers = range(answer.sampled + 1, answer.sampled + count + 1)
        answer.sampled += count
        return [self._token(answer, number) for number in numbers]

    def _token(self, answer: Answer, number: int) -> int:
        """Output token ``number``, counted from 1."""
        if answer.length is not None and number >= answer.length:
            return answer.eos
        return self._fillers[(answer.first + number) % len(self._fillers)]


_WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were all her she there would their we him been has when who will "
    "no more if out so up said what its about than into them can only other time new some could"
)
FILLER_WORDS = tuple(_WORDS.split())


def filler_tokens(tokenizer: Any) -> list[int]:
    """Tokens that read as ordinary words, each of which tokenizes back to itself.

    Answers are then never empty, and a conversation that repeats one hits the prefix cache as it
    would on a real engine. ValueError when the tokenizer has no one-token words.
    """
    encoded = (tokenizer.encode(f" {word}", add_special_tokens=False) for word in FILLER_WORDS)
    tokens = sorted({ids[0] for ids in encoded if len(ids) == 1})
    if not tokens:
        raise ValueError("the tokenizer has no one-token words to fill answers with")
    return tokens
