"""Replay of known answer lengths by a logits processor, leaking nothing to the scheduler.

A request carries only an opaque ``replay_id``; the length stands in a table that the workers
read. The processor forbids end-of-sequence until the answer has the length, then allows nothing
else: the engine sees an ordinary answer that happens to end there. (``ignore_eos`` with
``max_tokens`` would tell the scheduler the truth, and the engine skips a step when it knows it.)

vLLM has two interfaces for logits processors and each runner wants its own; ``ForcedLength``
satisfies both. V1: one row a request, state keyed by batch index. V2 (GPU): rows gathered by
request slot, no host synchronisation.

Requests need ``ignore_eos`` off, no stop strings, and ``max_tokens`` at least the length.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV1

from lengthwise.data.files import read_object, write_whole
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.vllm_adapter.vllm_config import replay_table_path

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2
except ImportError:  # before vLLM 0.31 there is one interface only
    LogitsProcessorV2 = object

logger = logging.getLogger(LOGGER_NAME)

REPLAY_ID = "replay_id"
_OFF = 2**31 - 1


class ReplayTable:
    """``{replay_id: output_tokens}`` from a JSON file, read again when the file has changed."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._stamp: tuple[int, int] | None = None
        self._lengths: dict[str, int] = {}

    def length(self, replay_id: object) -> int | None:
        """The forced length, None when unknown."""
        if replay_id is None or self._path is None:
            return None
        self._reload()
        return self._lengths.get(str(replay_id))

    def _reload(self) -> None:
        assert self._path is not None
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            table = read_object(self._path)
            self._lengths = {str(key): max(1, int(value)) for key, value in table.items()}
            self._stamp = stamp
        except (OSError, ValueError, AttributeError, TypeError) as error:
            logger.warning("replay table %s not read: %s", self._path, error)


def write_replay_table(path: Path | str, lengths: Mapping[str, int]) -> None:
    """Write a table so that a reader never sees half of it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, json.dumps(dict(lengths)))


class _Forced:
    """One request's end: its tokens so far (a live list), its length, its stop tokens."""

    __slots__ = ("eos", "length", "output", "stops")

    def __init__(self, output: list[int], length: int, eos: int, stops: list[int]) -> None:
        self.output = output
        self.length = length
        self.eos = eos
        self.stops = stops


class ForcedLength(LogitsProcessorV1, LogitsProcessorV2):
    """``--logits-processors lengthwise.scheduler.vllm_adapter.worker.replay:ForcedLength``."""

    def __init__(self, vllm_config: Any, *args: Any) -> None:
        self._table = ReplayTable(replay_table_path(vllm_config.additional_config))
        self._forced: dict[int, _Forced] = {}
        self._v2 = _SlotTargets(args[0]) if len(args) == 1 else None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Every request is acceptable; one without ``replay_id`` is left alone."""

    # -- V1 runner ----------------------------------------------------------------------------

    def is_argmax_invariant(self) -> bool:
        """It decides the argmax."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Take in added, removed and moved requests."""
        process_dict_updates(self._forced, batch_update, self._new_request)

    def _new_request(
        self, params: Any, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> _Forced | None:
        length, eos, stops = self._target(params)
        return None if length is None else _Forced(output_ids, length, eos, stops)

    def _target(self, params: Any) -> tuple[int | None, int, list[int]]:
        length = self._table.length((params.extra_args or {}).get(REPLAY_ID))
        eos = params.eos_token_id
        if length is None or eos is None:
            return None, -1, []
        return length, int(eos), sorted({int(t) for t in params.all_stop_token_ids} | {int(eos)})

    # -- V2 runner ----------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """(Re)initialise a slot; whether the request is forced."""
        assert self._v2 is not None
        length, eos, stops = self._target(sampling_params)
        self._v2.set(req_idx, length, eos, stops)
        return length is not None

    def apply_staged_writes(self) -> None:
        """Send this step's new slots to the device."""
        if self._v2 is not None:
            self._v2.flush()

    # -- both ---------------------------------------------------------------------------------

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Mask ``logits (rows, vocabulary)`` in place."""
        if ctx is not None:
            assert self._v2 is not None
            return self._v2.apply(logits, ctx)
        if not self._forced:
            return logits
        end_rows: list[int] = []
        end_tokens: list[int] = []
        stop_rows: list[int] = []
        stop_tokens: list[int] = []
        for row, forced in self._forced.items():
            # Asynchronous scheduling appends -1 placeholders, so the list's length is the count.
            if len(forced.output) >= forced.length - 1:
                end_rows.append(row)
                end_tokens.append(forced.eos)
            else:
                stop_rows.extend([row] * len(forced.stops))
                stop_tokens.extend(forced.stops)
        if stop_rows:
            stops = _on_device([stop_rows, stop_tokens], logits.device)
            logits.index_put_(tuple(stops), logits.new_full((), float("-inf")))
        if end_rows:
            ends = _on_device([end_rows, end_tokens], logits.device)
            logits.index_fill_(0, ends[0], float("-inf"))
            logits.index_put_(tuple(ends), logits.new_zeros(()))
        return logits


def _on_device(indices: list[list[int]], device: torch.device) -> torch.Tensor:
    """On a GPU the copy is queued: one that waits would end every step before the next is begun,
    and with it what asynchronous scheduling hides."""
    on_gpu = device.type == "cuda"
    return torch.tensor(indices, pin_memory=on_gpu).to(device, non_blocking=on_gpu)


class _SlotTargets:
    """V2 state: by request slot, the position whose sampled token must be end-of-sequence.

    A row at position p samples output token number p - prompt_len + 2 (counted from 1), so an
    answer of L tokens ends with the token sampled at position prompt_len + L - 2.
    """

    def __init__(self, req_states: Any) -> None:
        from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor

        self._req_states = req_states
        slots = req_states.max_num_reqs
        self._end = UvaBackedTensor(slots, dtype=torch.int32)
        self._end.np[:] = _OFF
        self._eos = -1
        self._stops: list[int] = []
        self._active: set[int] = set()
        self._dirty = True

    def set(self, slot: int, length: int | None, eos: int, stops: list[int]) -> None:
        """Force a slot's answer to ``length``, or leave the slot alone (None)."""
        self._dirty = True
        if length is None:
            self._end.np[slot] = _OFF
            self._active.discard(slot)
            return
        self._end.np[slot] = int(self._req_states.prompt_len.np[slot]) + length - 2
        self._active.add(slot)
        # End-of-sequence and stop tokens are the model's, the same for all replayed requests.
        self._eos, self._stops = eos, stops

    def flush(self) -> None:
        """Copy the targets to the device if any changed."""
        if self._dirty:
            self._end.copy_to_uva()
            self._dirty = False

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Mask in place; no device synchronisation."""
        if not self._active:
            return logits
        end = self._end.gpu[ctx.expanded_idx_mapping]
        forced = end != _OFF
        at_end = forced & (ctx.pos >= end)
        lowest = float("-inf")
        for stop in self._stops:
            logits[:, stop].masked_fill_(forced & ~at_end, lowest)
        logits.masked_fill_(at_end[:, None], lowest)
        logits[:, self._eos].masked_fill_(at_end, 0.0)
        return logits
