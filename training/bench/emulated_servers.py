"""Real servers on an emulated device: their step logs, and prompts of the workload's sizes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lengthwise.data.tokens import load_counter
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.vllm_adapter.emulated.device import FILLER_WORDS
from lengthwise.scheduler.vllm_adapter.emulated.prompts import prompt_token_ids
from lengthwise.scheduler.vllm_adapter.emulated.steps import StepRow, read_emulated_steps

_BETWEEN = "\n\n"


class StepReader:
    """Follows a step log: each call of ``new`` gives the steps since the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[StepRow]:
        """Steps that have ended since the last call; none before the log exists."""
        if not self._path.is_file():
            return []
        rows = read_emulated_steps(self._path, skip=self._read)
        self._read += len(rows)
        return rows


@dataclass(frozen=True, slots=True)
class EmulatedServers:
    """What a bench knows of its emulated servers."""

    profile: EngineProfile
    ours: StepReader
    stock: StepReader | None
    model_dir: Path

    def steps_of(self, stock: bool) -> StepReader:
        """The step log of one of the servers; ValueError for one that is not up."""
        reader = self.stock if stock else self.ours
        if reader is None:
            raise ValueError("no stock server is up")
        return reader

    def sized(self, requests: Sequence[WorkloadRequest]) -> list[WorkloadRequest]:
        """The requests with prompts as long for this model as the workload says.

        A prompt whose text is only its end gets filler words before it, the same ones where a
        beginning is shared. The predictor of the server reads them too.
        """
        counter = load_counter(str(self.model_dir))
        words = [word for word in FILLER_WORDS if counter(f" {word}") == 1]
        return [
            r
            if r.prompt is None or (r.text_tokens is None and r.prefix is None)
            else replace(r, prompt=_padded(r, index, words, counter))
            for index, r in enumerate(requests)
        ]

    @staticmethod
    def token_ids(requests: Sequence[WorkloadRequest]) -> list[list[int]]:
        """Token ids for requests without text, alike where a beginning is shared."""
        return prompt_token_ids(requests)


def _padded(
    request: WorkloadRequest, index: int, words: Sequence[str], count: Callable[[str], int]
) -> str:
    assert request.prompt is not None
    end = _BETWEEN + request.prompt
    missing = max(0, request.prompt_tokens - 1 - count(end))  # the server adds one to begin with
    shared = min(request.prefix_tokens or 0, missing)
    beginning = _filler(shared, zlib.crc32((request.prefix or "").encode()), words)
    own = _filler(missing - shared, 1 << 32 | index, words)
    return beginning + own + end


def _filler(count: int, seed: int, words: Sequence[str]) -> str:
    picks = np.random.default_rng(seed).integers(0, len(words), count)
    return "".join(f" {words[pick]}" for pick in picks)
