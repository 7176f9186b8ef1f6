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


class Scheduled(NamedTuple):
    """A request's part of a step, in tokens: computed before it, output known, taken on now."""

    req_id: str
    computed: int
    outputs: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step does, as a profile's step time counts it, and a list of tokens per request."""

    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    req_ids: list[str]
    sampled: list[list[int]]


class Answers:
    """The device's requests. Which token is sampled follows from positions alone.

    The step that computes a request's last known token samples the next one. So a chunk of a
    prompt samples nothing, and a request that was preempted computes its answer so far again and
    goes on from there, without any state of their own.
    """

    def __init__(self, fillers: Sequence[int]) -> None:
        if not fillers:
            raise ValueError("an emulated device needs at least one filler token, got none")
        self._fillers = list(fillers)
        self._answers: dict[str, Answer] = {}

    def add(self, req_id: str, prompt_tokens: int, length: int | None, eos: int) -> None:
        """A request that will be scheduled, or is again under the same id."""
        first = zlib.crc32(req_id.encode())
        self._answers[req_id] = Answer(prompt_tokens, length, eos, first)

    def drop(self, req_ids: Iterable[str]) -> None:
        """Forget requests that ended, whether finished or aborted."""
        for req_id in req_ids:
            self._answers.pop(req_id, None)

    def __len__(self) -> int:
        return len(self._answers)

    def step(self, scheduled: Iterable[Scheduled]) -> StepWork:
        """Run one step; one token taken on is a decode, its context counts what is computed."""
        prefill_tokens = decode_seqs = context_tokens = 0
        req_ids: list[str] = []
        sampled: list[list[int]] = []
        for req_id, computed, outputs, tokens in scheduled:
            answer = self._answers[req_id]
            computed += tokens
            if tokens == 1:
                decode_seqs += 1
                context_tokens += computed
            else:
                prefill_tokens += tokens
            number = computed - answer.prompt_tokens + 1
            req_ids.append(req_id)
            sampled.append([] if number <= outputs else [self._token(answer, number)])
        return StepWork(prefill_tokens, decode_seqs, context_tokens, req_ids, sampled)

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
