"""LMDeploy's own PyTorch engine in virtual time, serving a workload.

Its Engine, EngineLoop, InputsMaker, Scheduler, sessions and pool of request handles run as they
are; of ours are the executor, the clock and, where a policy is given, the pool's order. Left out,
as if they took no time: HTTP, tokenizer, the hop between its API and engine processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import lmdeploy.pytorch.paging.block_manager.base_block_manager as blocks_module
import lmdeploy.pytorch.paging.block_trie.checkpoint_lifecycle as checkpoints_module
import lmdeploy.pytorch.paging.block_trie.kv_lifecycle as trie_module
import lmdeploy.pytorch.paging.prefill_scheduler as prefill_module
import lmdeploy.pytorch.strategies.ar.sequence as sequence_module
import numpy as np
from lmdeploy.messages import GenerationConfig, PytorchEngineConfig, ResponseType
from lmdeploy.pytorch.config import ModelConfig
from lmdeploy.pytorch.engine import engine as engine_module
from lmdeploy.serve.managers.session_manager import SessionManager

from lengthwise.data.errors import InputError
from lengthwise.scheduler.lmdeploy_adapter.inside.planned_pool import ROW, PlannedPool
from lengthwise.scheduler.lmdeploy_adapter.inside.timed_executor import TimedExecutor
from lengthwise.scheduler.lmdeploy_adapter.play_messages import PoolTask
from lengthwise.scheduler.lmdeploy_adapter.pool_order import (
    PoolOrder,
    answered,
    pool_policy_of,
)
from lengthwise.scheduler.lmdeploy_adapter.virtual_clock import VirtualLoop
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.instance import Course
from lengthwise.scheduler.simulator.sim_workload import SimResult, SimWorkload

BLOCK_TOKENS = 64  # LMDeploy's default
RESERVED_BLOCKS = 1  # the engine keeps one for padding
STALLED_S = 600.0
Read = Callable[[int, int, float], None]  # row, tokens that came, now in seconds
_CLOCKS = (sequence_module, prefill_module, blocks_module, checkpoints_module)


def play(task: PoolTask) -> SimResult:
    """What comes of the task.

    Raises:
        InputError: a request or a profile that LMDeploy cannot serve.
        RuntimeError: its engine stopped.
    """
    check_servable(task.workload, task.profile)
    course = Course(task.workload)
    order = None
    if task.policy is not None:
        policy = pool_policy_of(task.policy, budget_s=task.budget_s, seed=task.seed, **task.params)
        if task.nominal_s is not None:
            policy.nominal_s = task.nominal_s
        order = PoolOrder(course, policy, task.profile, max_wait_s=task.max_wait_s)
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        engine = _engine(task.workload, task.profile, loop)
        loop.run_until_complete(_serve(engine, course, task.profile, order))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return _result(course, order, engine.executor, loop.time())


def check_servable(workload: SimWorkload, profile: EngineProfile) -> None:
    """InputError for what LMDeploy would refuse, cut short, or never begin."""
    if profile.speculation is not None:
        raise InputError(
            f"engine profile {profile.name!r} has speculation, which the lmdeploy arm does not play"
        )
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    room = (profile.capacity.kv_tokens // BLOCK_TOKENS - 1) * BLOCK_TOKENS
    if longest > room:
        raise InputError(
            f"a request of {longest} tokens is beyond LMDeploy's session length of {room}, its KV "
            f"memory on engine profile {profile.name!r} less a block of {BLOCK_TOKENS}"
        )


def _engine(workload: SimWorkload, profile: EngineProfile, loop: VirtualLoop) -> Any:
    """LMDeploy's engine of the profile's size, its clocks those of the loop."""
    clock = SimpleNamespace(perf_counter=loop.time, time=loop.time)
    for module in _CLOCKS:
        module.time = clock
    # blocks last used in the same second are told apart by address there, which differs by run
    trie_module.id = lambda node: node.block_id
    capacity = profile.capacity
    config = PytorchEngineConfig(
        max_batch_size=capacity.max_num_seqs,
        num_gpu_blocks=capacity.kv_tokens // BLOCK_TOKENS + RESERVED_BLOCKS,
        block_size=BLOCK_TOKENS,
        max_prefill_token_num=capacity.max_num_batched_tokens,
        session_len=int((workload.prompt_tokens + workload.output_tokens).max()),
        enable_prefix_caching=profile.prefix_cache is not None,
        enable_metrics=False,
    )
    model = ModelConfig(
        hidden_size=256, num_layers=4, num_attention_heads=4, num_key_value_heads=1,
        bos_token_id=1, eos_token_id=[2], head_dim=64,
    )  # fmt: skip

    def build(_: str, **configs: Any) -> TimedExecutor:
        names = ("cache_config", "backend_config", "dist_config", "misc_config")
        given = {name: configs[name] for name in names}
        return TimedExecutor(profile.scaled_step_time, model, **given)

    engine_module.build_executor = build
    return engine_module.Engine(".", config)


async def _serve(
    engine: Any, course: Course, profile: EngineProfile, order: PoolOrder | None
) -> None:
    """Every request at its time, to its end."""
    sessions, size = SessionManager(), profile.capacity.max_num_seqs
    if order is None:
        sessions.build_request_handle_pool(engine, size)
    else:
        sessions.request_handle_pool = PlannedPool(engine, size, order)
    sessions.attach_event_loop(asyncio.get_running_loop())
    engine.start_loop()
    rows = range(len(course.workload))
    read = partial(answered, course) if order is None else order.read
    requests = [asyncio.create_task(_request(sessions, course, row, read)) for row in rows]
    watch: asyncio.Future[Any] = asyncio.create_task(_watch(engine.executor, sessions))
    everybody: asyncio.Future[Any] = asyncio.gather(*requests)
    try:
        await asyncio.wait({everybody, watch}, return_when=asyncio.FIRST_COMPLETED)
        (everybody if everybody.done() else watch).result()
    finally:
        engine.stop()
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for other in others:
            other.cancel()
        await asyncio.gather(*others, everybody, return_exceptions=True)


async def _request(sessions: Any, course: Course, row: int, read: Read) -> None:
    loop, workload = asyncio.get_running_loop(), course.workload
    ROW.set(row)
    await asyncio.sleep(float(workload.arrival_s[row]) - loop.time())
    wanted = GenerationConfig(max_new_tokens=int(workload.output_tokens[row]), ignore_eos=True)
    session = sessions.get()
    async with session.request_handle() as handle:
        course.times[row, e.ADMITTED] = loop.time()
        answers = handle.async_stream_infer(session.session_id, _prompt(workload, row), wanted)
        async for answer in answers:
            if answer.status not in (ResponseType.SUCCESS, ResponseType.FINISH):
                raise RuntimeError(f"LMDeploy's engine ended request {row}: {answer.status.name}")
            if answer.token_ids:
                read(row, len(answer.token_ids), loop.time())
    sessions.remove(session)


def _prompt(workload: SimWorkload, row: int) -> list[int]:
    """Token ids: those of a shared beginning are its own, the rest are of this row alone."""
    shared, prefix = 0, -1
    if workload.prefix_id is not None and workload.prefix_tokens is not None:
        prefix = int(workload.prefix_id[row])
        shared = int(workload.prefix_tokens[row]) if prefix >= 0 else 0
    rest = int(workload.prompt_tokens[row]) - shared
    return [2 * prefix + 11] * shared + [2 * row + 10] * rest


async def _watch(executor: TimedExecutor, sessions: Any) -> None:
    """RuntimeError once requests have handles and no step has begun for STALLED_S."""
    while True:
        steps, pool = executor.steps, sessions.request_handle_pool
        busy = pool.num_dispatched > 0
        await asyncio.sleep(STALLED_S)
        if busy and pool.num_dispatched > 0 and executor.steps == steps:
            raise RuntimeError(
                f"LMDeploy's engine began no step for {STALLED_S:g} virtual seconds with "
                f"{pool.num_dispatched} requests in it"
            )


def _result(course: Course, order: PoolOrder | None, executor: Any, end_s: float) -> SimResult:
    times, batch = course.times, executor.batch
    short = np.flatnonzero(course.state[:, e.GENERATED] != course.workload.output_tokens)
    if len(short):
        row = int(short[0])
        raise RuntimeError(
            f"LMDeploy gave request {row} {course.state[row, e.GENERATED]} tokens of "
            f"{course.workload.output_tokens[row]}"
        )
    return SimResult(
        admitted_s=times[:, e.ADMITTED],
        first_token_s=times[:, e.FIRST],
        finish_s=times[:, e.FINISH],
        output_tokens=course.state[:, e.GENERATED],
        plan_s=[] if order is None else order.plan_s,
        queue_len=[] if order is None else order.queue_len,
        preemptions=batch.prompts - len(course.workload),
        yields=0,
        steps=executor.steps,
        prefilled_tokens=batch.prefilled_tokens,
        kv_peak_tokens=batch.context_peak_tokens,
        end_s=float(np.max(times[:, e.FINISH], initial=0.0)) or end_s,
    )
