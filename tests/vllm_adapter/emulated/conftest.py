"""What the tests on emulated devices share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerProcess


@pytest.fixture(scope="module")
def player() -> Iterator[PlayerProcess]:
    with PlayerProcess() as process:
        yield process
