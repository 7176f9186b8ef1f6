"""Forced lengths: the logits each interface produces, and the table it reads."""

from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

from lengthwise.scheduler.vllm_adapter.worker import replay
from lengthwise.scheduler.vllm_adapter.worker.replay import (
    ForcedLength,
    ReplayTable,
    write_replay_table,
)

EOS, OTHER_STOP, VOCABULARY = 2, 5, 8


def params(replay_id=None):
    extra = None if replay_id is None else {"replay_id": replay_id}
    return SimpleNamespace(extra_args=extra, eos_token_id=EOS, all_stop_token_ids={OTHER_STOP})


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "replay.json"
    write_replay_table(path, {"a": 3, "b": 1})
    return SimpleNamespace(additional_config={"lengthwise": {"replay_table": str(path)}})


def allowed(row):
    return [i for i, value in enumerate(row.tolist()) if not math.isinf(value)]


EVERY = list(range(VOCABULARY))
UNFINISHED = [i for i in EVERY if i not in (EOS, OTHER_STOP)]


def test_v1_forbids_the_end_until_the_length_then_allows_nothing_else(config):
    processor = ForcedLength(config, torch.device("cpu"), False)
    outputs = {"a": [], "b": [], "free": []}
    added = [
        (0, params("a"), [1], outputs["a"]),
        (1, params("b"), [1], outputs["b"]),
        (2, params(), [1], outputs["free"]),
        (3, params("unknown"), [1], []),
    ]
    processor.update_state(BatchUpdate(batch_size=4, removed=[], added=added, moved=[]))
    first = processor.apply(torch.zeros(4, VOCABULARY))
    assert [allowed(row) for row in first] == [UNFINISHED, [EOS], EVERY, EVERY]
    outputs["a"] += [7, -1]  # one token, one placeholder of asynchronous scheduling
    second = processor.apply(torch.zeros(4, VOCABULARY))
    assert allowed(second[0]) == [EOS]
    assert not processor.is_argmax_invariant()


def test_v1_follows_requests_that_move_in_the_batch(config):
    processor = ForcedLength(config, torch.device("cpu"), False)
    added = [(0, params(), [1], []), (1, params("b"), [1], [])]
    processor.update_state(BatchUpdate(batch_size=2, removed=[], added=added, moved=[]))
    moved = [(1, 0, MoveDirectionality.UNIDIRECTIONAL)]
    processor.update_state(BatchUpdate(batch_size=1, removed=[], added=[], moved=moved))
    assert allowed(processor.apply(torch.zeros(1, VOCABULARY))[0]) == [EOS]


class HostTensor:
    """Stands for UvaBackedTensor: the device sees what the last copy_to_uva showed it."""

    def __init__(self, size, dtype):
        self.np = np.zeros(size, dtype=np.int32)
        self.gpu = torch.zeros(size, dtype=dtype)

    def copy_to_uva(self):
        self.gpu = torch.from_numpy(self.np.copy())


def test_v2_forces_by_slot_and_position(config, monkeypatch):
    """Prompt of 10, length 3: the third token is sampled at position 10 + 3 - 2 = 11."""
    from vllm.v1.worker.gpu import buffer_utils

    monkeypatch.setattr(buffer_utils, "UvaBackedTensor", HostTensor)
    prompts = HostTensor(4, torch.int32)
    prompts.np[:] = 10
    processor = ForcedLength(config, SimpleNamespace(max_num_reqs=4, prompt_len=prompts))
    assert processor.add_request(3, params("a"))
    assert not processor.add_request(1, params())
    processor.apply_staged_writes()

    def rows(slots, positions):
        context = SimpleNamespace(
            expanded_idx_mapping=torch.tensor(slots), pos=torch.tensor(positions)
        )
        return [
            allowed(row) for row in processor.apply(torch.zeros(len(slots), VOCABULARY), context)
        ]

    assert rows([1, 3], [9, 9]) == [EVERY, UNFINISHED]
    assert rows([3, 1], [10, 10]) == [UNFINISHED, EVERY]
    assert rows([3, 1], [11, 11]) == [[EOS], EVERY]
    # three rows of one request, as under speculative decoding
    assert rows([3, 3, 3], [10, 11, 12]) == [UNFINISHED, [EOS], [EOS]]
    # the slot is recycled by a request that is not replayed
    assert not processor.add_request(3, params())
    processor.apply_staged_writes()
    assert rows([3], [11]) == [EVERY]


def test_the_table_is_read_again_when_it_changed(tmp_path):
    path = tmp_path / "table.json"
    table = ReplayTable(str(path))
    assert table.length("x") is None
    write_replay_table(path, {"x": 4})
    assert table.length("x") == 4
    path.write_text(json.dumps({"x": 9, "7": 2}))
    os.utime(path, ns=(1, 1))
    assert table.length("x") == 9
    assert table.length(7) == 2


def test_a_broken_table_keeps_the_last_good_one(tmp_path):
    path = tmp_path / "table.json"
    write_replay_table(path, {"x": 4})
    table = ReplayTable(str(path))
    assert table.length("x") == 4
    path.write_text("{half")
    assert table.length("x") == 4
    path.write_text("[1]")
    assert table.length("x") == 4


def test_without_a_table_nothing_is_forced(monkeypatch):
    monkeypatch.delenv("LENGTHWISE_REPLAY_TABLE", raising=False)
    processor = ForcedLength(SimpleNamespace(additional_config=None), torch.device("cpu"), False)
    assert processor._table.length("a") is None
    assert replay.REPLAY_ID == "replay_id"
