"""LMDeploy's environment where there is one: $LENGTHWISE_LMDEPLOY, else the checkout's."""

from pathlib import Path

import pytest

from lengthwise.data.errors import InputError
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import environment_python
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_player import LmdeployPlayer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def lmdeploy_python():
    try:
        return environment_python(ROOT / ".lengthwise")
    except InputError as absent:
        pytest.skip(str(absent))


@pytest.fixture(scope="session")
def player(lmdeploy_python):
    """One process of the environment for all tests."""
    player = LmdeployPlayer(lmdeploy_python)
    yield player
    player.close()
