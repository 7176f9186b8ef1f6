"""Server settings, the launcher's command line, and the files both agree on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from lengthwise.data.errors import InputError
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.server.run_files import RunFiles
from lengthwise.scheduler.serving.server.server_handle import ServerStartError
from lengthwise.scheduler.serving.settings import (
    SETTINGS_VARIABLE,
    ServerSettings,
    make_settings,
    read_settings,
)
from lengthwise.scheduler.vllm_adapter.emulated.options import EMULATE_VARIABLE, EmulateOptions
from lengthwise.scheduler.vllm_adapter.server import command as command_line
from lengthwise.scheduler.vllm_adapter.server.command import server_command, server_environment
from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
from lengthwise.scheduler.vllm_adapter.server.vllm_foreground import serve_forever
from lengthwise.scheduler.vllm_adapter.vllm_config import (
    REPLAY_VARIABLE,
    settings_from_additional_config,
)
from lengthwise.training.bench.engines.servers import free_port


def environment(model, settings, folder, replay=None, emulate=None, vllm_args=()):
    return server_environment(model, settings, RunFiles(folder), replay, emulate, vllm_args)


def test_settings_survive_the_file(tmp_path):
    settings = make_settings(
        {"policy": "edf", "slo_table": {"chat": {"ttft_ms": 10.0}}, "policy_params": {"a": 1}}
    )
    assert read_settings(settings.write(tmp_path / "deep" / "settings.json")) == settings


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"lengths": "guess"}, "lengths"),
        ({"plan_budget_ms": -1}, "plan_budget_ms"),
        ({"polcy": "sa"}, "polcy"),
        ({"max_wait_s": 0}, "max_wait_s"),
        ({"slo_table": {"chat": {"ttft_ms": -3.0}}}, "-3"),
    ],
)
def test_wrong_settings_name_the_key(values, named):
    with pytest.raises(InputError, match=named):
        make_settings(values)


def test_a_missing_or_broken_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_settings(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"policy": ')
    with pytest.raises(InputError, match=r"half\.json: not JSON"):
        read_settings(tmp_path / "half.json")


def test_the_engine_finds_its_settings_in_configuration_or_environment(tmp_path, monkeypatch):
    path = ServerSettings(policy="edf").write(tmp_path / "a.json")
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    assert settings_from_additional_config(None).policy == "edf"
    inline = {"lengthwise": {"settings": {"policy": "llf"}}}
    assert settings_from_additional_config(inline).policy == "llf"
    assert settings_from_additional_config({"lengthwise": {"settings": str(path)}}).policy == "edf"


def test_stock_has_nothing_of_ours_but_the_replay(tmp_path):
    stock = server_command("m", None, ["--port", "1"])
    # the interpreter's own path may well name the clone it lies in
    assert stock[0] == sys.executable
    assert not any("scheduler" in part or "lengthwise" in part for part in stock[1:])
    replayed = server_command("m", None, ["--port", "1"], replayed=True)
    extra = [part for part in replayed if part not in stock]
    forced = "lengthwise.scheduler.vllm_adapter.worker.replay:ForcedLength"
    assert extra == ["--logits-processors", forced]


def test_both_arms_give_the_compiler_the_same_configuration(tmp_path):
    """vLLM hashes additional_config into its compilation cache's key: paths there recompile."""
    ours = server_command("m", ServerSettings(), ["--port", "1"], replayed=True)
    assert "--additional-config" not in ours


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"predictor_dir": "/no/such/place"}, "card.json"),
        ({"policy": "magic"}, "magic"),
        ({"profile": "no-such-engine"}, "no-such-engine"),
        ({"policy_params": {"warp": 9}}, "warp"),
        ({"slo_table": {"chat": {"tftt_ms": 1.0}}}, "tftt_ms"),
    ],
)
def test_what_cannot_start_is_known_before_the_model_is_loaded(values, named):
    with pytest.raises(ValueError, match=named):
        server_command("m", ServerSettings(**values))


def test_a_profile_that_is_none_is_the_users_input():
    with pytest.raises(InputError, match="no profile 'no-such-engine'; known are"):
        server_command("m", ServerSettings(profile="no-such-engine"))


def test_a_model_directory_must_exist():
    with pytest.raises(InputError, match="no such directory"):
        server_command("./no-such-model", None)


def test_tiny_is_built_and_its_arguments_yield_to_given_ones(tmp_path):
    command = server_command("tiny", None, ["--max-num-seqs=4"], cache_dir=tmp_path)
    assert (tmp_path / "tiny" / "manifest.json").is_file()
    assert "--max-num-seqs" not in command
    assert command[-1] == "--max-num-seqs=4"
    assert "dummy" in command


def test_the_environment_carries_the_files_and_a_fresh_metrics_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somewhere/old")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    made = environment("tiny", ServerSettings(policy="edf"), tmp_path, tmp_path / "t.json")
    assert read_settings(made[SETTINGS_VARIABLE]).policy == "edf"
    assert made[REPLAY_VARIABLE] == str(tmp_path / "t.json")
    assert made["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path / "metrics")
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "3"


@pytest.fixture
def stand_in(monkeypatch):
    """Starts a Python one-liner where vLLM would start."""

    def use(program):
        program_line = [sys.executable, "-c", program]
        monkeypatch.setattr(command_line, "_entry_point", lambda model: program_line)

    return use


def test_a_server_that_cannot_start_says_why(tmp_path, stand_in):
    stand_in("print('no such model'); raise SystemExit(3)")
    server = launch_server("m", None, 1, log_path=tmp_path / "log")
    with server as handle, pytest.raises(ServerStartError, match=r"exit code 3:\nno such model"):
        handle.wait_ready(60)
    assert not handle.files.folder.exists()


@pytest.mark.parametrize(("code", "told"), [(0, 1), (3, 3)])
def test_a_server_that_ends_unasked_has_failed(stand_in, code, told, tmp_path):
    stand_in(f"raise SystemExit({code})")
    port = str(free_port())
    assert serve_forever("m", None, ["--port", port], cache_dir=tmp_path) == told
    assert list((tmp_path / "run").iterdir()) == []


def test_a_server_that_is_never_ready_times_out(tmp_path, stand_in):
    stand_in("import time; print('loading', flush=True); time.sleep(60)")
    server = launch_server("m", None, free_port(), log_path=tmp_path / "log")
    with server as handle, pytest.raises(ServerStartError, match="not ready after 2 s"):
        handle.wait_ready(2)
    assert not handle.is_running


def test_terminate_takes_children_along_that_will_not_listen(tmp_path, stand_in):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    stand_in(
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {stubborn!r}])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with launch_server("m", None, 1, log_path=tmp_path / "log"):
        deadline = time.monotonic() + 30
        while not (tmp_path / "log").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_the_tiny_model_is_built_once(tiny_dir):
    from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model

    before = (tiny_dir / "manifest.json").stat().st_mtime_ns
    assert build_tiny_model(tiny_dir) == tiny_dir
    assert (tiny_dir / "manifest.json").stat().st_mtime_ns == before


def test_a_half_built_tiny_model_is_built_again(tmp_path):
    from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model

    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    build_tiny_model(tmp_path / "tiny")
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["hidden_size"] == 256


def test_the_tiny_tokenizer_is_lossless_and_knows_roles(tiny_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    text = "def f(x):\n\treturn x ** 2  # ça, 漢字, 😀"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) < len(text)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<s><|system|>s<|user|>u<|assistant|>"


def test_an_emulated_server_has_the_profiles_limits_and_no_sampler(tmp_path):
    options = EmulateOptions("tiny-cpu", step_log="steps.jsonl")
    command = server_command(
        "tiny", ServerSettings(), ["--max-num-seqs", "4"], replayed=True, cache_dir=tmp_path,
        emulate=options,
    )  # fmt: skip
    given = dict(zip(command, [*command[1:], ""], strict=True))
    limits = load_profile("tiny-cpu").capacity
    assert given["--distributed-executor-backend"].endswith("emulated.worker.EmulatedExecutor")
    assert given["--logits-processors"].endswith("emulated.refusals:Refusals")
    assert command.count("--logits-processors") == 1
    assert given["--max-num-batched-tokens"] == str(limits.max_num_batched_tokens)
    assert given["--block-size"] == "16"
    assert {"--enforce-eager", "--no-enable-prefix-caching"} <= set(command)
    # what the user gives wins, and stands once
    assert [given["--max-num-seqs"], command.count("--max-num-seqs")] == ["4", 1]
    told = json.loads(Path(environment("tiny", None, tmp_path, emulate=options)[EMULATE_VARIABLE])
                      .read_text())  # fmt: skip
    assert told == {"profile": "tiny-cpu", "async_scheduling": True, "step_log": "steps.jsonl"}
