"""Our router over the engines of one server, with engines that are none."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from lengthwise.data.slo import Slo
from lengthwise.scheduler.fleet.state_message import VERSION
from lengthwise.scheduler.serving.api.admission_desk import AdmissionDesk
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.call import Call, calling
from lengthwise.scheduler.serving.api.engines import (
    ask_all,
    one_answer,
    status_of_all,
)
from lengthwise.scheduler.serving.settings import AdmissionSettings, ServerSettings
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS
from lengthwise.scheduler.serving.wire.fleet_key import front_of, new_fleet_key
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.vllm_adapter.api.instances.data_parallel import (
    DataParallelRouter,
    data_parallel_router,
    without_rank,
)
from lengthwise.scheduler.vllm_adapter.api.sequences import attach
from lengthwise.scheduler.vllm_adapter.server.command import cores_of_each, data_parallel_size

SHORT = tuple(20.0 for _ in DEFAULT_LEVELS)


class Core:
    """The client of several engines, as vLLM's is; ``said`` answers each, by rank."""

    def __init__(self, *said):
        self.core_engines = [bytes([rank]) for rank in range(len(said))]
        self.said = said
        self.asked = []

    async def _call_utility_async(self, method, *args, engine):
        self.asked.append((engine[0], method, *args))
        said = self.said[engine[0]]
        if said == "late":
            await asyncio.sleep(60)
        if isinstance(said, Exception):
            raise said
        return said


class Client:
    """An engine client whose sequences yield the rank they were sent to."""

    def __init__(self, core, fails=False):
        self.engine_core = core
        self.fails = fails
        self.keys = []

    async def generate(self, prompt, sampling_params, request_id, *, data_parallel_rank=None):
        self.keys.append((sampling_params.extra_args or {}).get("lw_fleet_key"))
        yield data_parallel_rank
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError("engine")
        yield data_parallel_rank


def steered(core=None, settings=None, **kwargs):
    client = Client(core or Core({}, {}), **kwargs)
    router = data_parallel_router(settings or ServerSettings(), client, api_metrics())
    assert attach(client, lambda route: None, router)
    return client, router


def params(**values):
    return SimpleNamespace(max_tokens=30, extra_args=None, n=1, **values)


async def ranks(client, count=1, prompt="hi"):
    generators = [client.generate(prompt, params(), str(k)) for k in range(count)]
    return [[rank async for rank in one] for one in generators]


def outstanding(router):
    return [one["outstanding"] for one in router.desk.status()["instances"]]


def test_each_sequence_goes_to_the_rank_that_the_router_says():
    async def play():
        client, router = steered()
        first = client.generate("hi", params(), "1")
        second = client.generate({"prompt_token_ids": [1] * 50}, params(), "2")
        a, b = await anext(first), await anext(second)
        assert {a, b} == {0, 1}
        assert outstanding(router) == [1, 1]
        assert await anext(first) == a
        await first.aclose()
        await second.aclose()
        assert outstanding(router) == [0, 0]
        assert None not in client.keys
        assert len(set(client.keys)) == 2

    asyncio.run(play())


def test_an_engine_that_fails_frees_what_was_booked():
    async def play():
        client, router = steered(fails=True)
        with pytest.raises(RuntimeError, match="engine"):
            await ranks(client)
        assert outstanding(router) == [0, 0]

    asyncio.run(play())


def test_sequences_of_one_request_stay_together():
    async def play():
        client, router = steered()
        call = Call([Hints(Slo(), quantiles=SHORT) for _ in range(4)], whole_id="w")
        with calling(call):
            generators = [client.generate("hi", params(), str(k)) for k in range(4)]
            found = await asyncio.gather(*(anext(one) for one in generators))
        assert len(set(found)) == 1
        assert sorted(outstanding(router)) == [0, 4]
        for one in generators:
            await one.aclose()

    asyncio.run(play())


def test_prompts_that_begin_alike_are_told_to_the_router():
    async def play():
        client, router = steered()
        told = []
        make = router.requests.make
        router.requests.make = lambda *args: told.append(make(*args)) or told[-1]
        ids = list(range(400))
        for prompt in ({"prompt_token_ids": [*ids, 1]}, SimpleNamespace(prompt_token_ids=[*ids, 2]),
                       "long text " * 200, {"prompt": "long text " * 150}, None,
                       {"prompt_token_ids": np.arange(401)}, [1, 10**25] * 20):  # fmt: skip
            await ranks(client, prompt=prompt)
        return told

    told = asyncio.run(play())
    assert [one.prompt_tokens for one in told] == [401, 401, 501, 376, 1, 401, 1]
    assert [one.prefix_tokens for one in told] == [0, 384, 0, 320, 0, 384, 0]
    assert told[1].prefix in dict(told[0].beginnings)
    assert told[4].starts == ()


def test_without_a_router_vllm_balances_itself():
    async def play():
        client, router = steered(settings=ServerSettings(router="none"))
        assert router is None
        assert await ranks(client) == [[None, None]]

    asyncio.run(play())


def test_a_single_engine_is_not_routed():
    core = SimpleNamespace(call_utility_async=None)
    assert data_parallel_router(ServerSettings(), Client(core), api_metrics()) is None


def test_a_router_without_engines_leaves_the_choice_to_vllm():
    async def play():
        client, router = steered()
        router.desk.dispatcher.keep([])
        assert await ranks(client) == [[None, None]]

    asyncio.run(play())


def test_clients_cannot_name_a_rank():
    headers = [(b"X-Data-Parallel-Rank", b"1"), (b"x-other", b"2")]
    assert without_rank(headers) == [(b"x-other", b"2")]


def test_every_engine_answers_and_a_slow_one_keeps_nobody():
    async def play():
        core = Core({"policy": "sa"}, "late", RuntimeError("dead"))
        answers = await ask_all(core, "status", timeout_s=0.05)
        assert answers["0"] == {"policy": "sa"}
        assert isinstance(answers["1"], TimeoutError)
        assert isinstance(answers["2"], RuntimeError)
        assert one_answer("configure", answers) is None
        found = status_of_all("status", answers)
        assert found["policy"] == "sa"
        assert [one["name"] for one in found["instances"]] == ["0", "1", "2"]
        assert "dead" in found["instances"][2]["error"]

    asyncio.run(play())


def test_an_error_of_any_engine_is_the_answer():
    assert one_answer("configure", {"0": {"policy": "sa"}, "1": {"error": "no"}}) == {"error": "no"}
    assert status_of_all("status", {"0": {"policy": "sa"}}) == {"policy": "sa"}
    assert status_of_all("status", {"0": RuntimeError()}) is None


@pytest.mark.parametrize(
    ("said", "action"),
    [
        (("shed", "shed"), "shed"),
        (("shed", "admit"), "admit"),
        (("downgrade", "shed"), "downgrade"),
        (("shed", RuntimeError("dead")), "admit"),
    ],
)
def test_what_one_engine_would_admit_is_admitted(said, action):
    async def play():
        answers = [
            one if isinstance(one, Exception) else {"action": one, "retry_after_s": 1.0}
            for one in said
        ]
        desk = AdmissionDesk(AdmissionSettings(mode="shed"), api_metrics())
        answer = await desk.ask(Core(*answers), Hints(Slo(e2e_s=1.0)), 10, 10)
        assert answer.action == action

    asyncio.run(play())


def test_the_engines_own_states_reach_the_router():
    async def play():
        state = {
            "version": VERSION, "epoch": 5, "sequence": 1, "at_s": 3.0,
            "profile": {"name": "p", "step_time": [0.01, 0, 1e-4, 1e-3, 0, 0, 0],
                        "capacity": [4, 4096, 256], "block_tokens": None, "speculation": None},
            "rows": [], "running": 0, "recovering": 0, "others": [], "draining": False,
            "about": {"policy": "sa"}, "limits": [3.0, None, 1.0],
        }  # fmt: skip
        _, router = steered(Core(state, json.loads(json.dumps(state))))
        router.start()
        router.start()
        await asyncio.sleep(0.05)
        found = router.desk.status()["instances"]
        assert [one["about"] for one in found] == [{"policy": "sa"}] * 2
        assert all(one["state_age_s"] < 1 for one in found)
        assert len(router._polls) == 2

    asyncio.run(play())


def test_a_key_says_whose_it_is():
    keys = {new_fleet_key(7) for _ in range(100)}
    assert len(keys) == 100
    assert {front_of(key) for key in keys} == {7}
    assert max(new_fleet_key(2**20 - 1) for _ in range(10)) < 2**62
    assert front_of(None) is None


@pytest.mark.parametrize(
    ("engines", "cores", "said"),
    [(2, (0, 1), "0|1"), (2, (4, 5, 6, 7, 9), "4,5|6,7"), (3, (0, 1), "nobind")],
)
def test_cores_are_shared_out(engines, cores, said):
    assert cores_of_each(engines, cores) == said


def test_the_number_of_engines_is_read_from_the_command_line():
    assert data_parallel_size(["--data-parallel-size", "3"]) == 3
    assert data_parallel_size(["-dp=2", "--port", "1"]) == 2
    assert data_parallel_size(["--port", "1"]) == data_parallel_size(["-dp", "x"]) == 1


def test_a_malformed_state_costs_nothing():
    async def play():
        client, router = steered(Core({"version": 9}, RuntimeError("no such method")))
        assert isinstance(router, DataParallelRouter)
        router.start()
        await asyncio.sleep(0.02)
        assert (await ranks(client))[0][0] in (0, 1)

    asyncio.run(play())
