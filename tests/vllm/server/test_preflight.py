"""What is looked at before anything loads: the address, the model, the command line."""

from __future__ import annotations

import socket

import pytest

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.server.command_options import given_options, without_given
from lengthwise.scheduler.serving.server.preflight import (
    Address,
    address_of,
    check_model,
    hold_address,
)
from lengthwise.scheduler.serving.server.run_files import RunFiles
from lengthwise.scheduler.vllm_adapter.server.command import server_environment
from lengthwise.training.bench.engines.servers import free_port


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ([], Address("", 8000)),
        (["--port", "81", "--host", "::1"], Address("::1", 81)),
        (["--port=81", "--max-num-seqs", "4"], Address("", 81)),
        (["--port", "81", "--port", "82"], Address("", 82)),
        (["--uds", "/run/x"], None),
        (["--config", "x.yaml"], None),
        (["--config", "x.yaml", "--port", "81", "--host", "h"], Address("h", 81)),
        (["--headless"], None),
    ],
)
def test_the_address_is_vllms_own(args, found):
    assert address_of(args) == found


@pytest.mark.parametrize("port", ["soon", "-1", "65536", "80.5", ""])
def test_a_port_that_is_none(port):
    if port == "":
        assert address_of([f"--port={port}"]) == Address("", 8000)
        return
    with pytest.raises(InputError, match="--port must be"):
        address_of([f"--port={port}"])


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_taken_port_is_told_at_once(listening, host):
    """A server that loads has bound its port, as vLLM does, and does not listen yet."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        if listening:
            other.listen()
        with pytest.raises(InputError, match="it is taken; --port"):
            hold_address(Address(host, other.getsockname()[1]))


def test_a_held_address_is_vllms_to_listen_at_and_nobody_elses_to_hold():
    address = Address("127.0.0.1", free_port())
    assert not address.listens()
    with hold_address(address), socket.socket() as vllm:
        with pytest.raises(InputError, match="taken"):
            hold_address(address)
        vllm.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        vllm.bind((address.host, address.port))
        vllm.listen()
        assert address.listens()


def test_a_port_whose_connections_just_ended_is_free():
    address = Address("127.0.0.1", free_port())
    place = (address.host, address.port)
    with socket.create_server(place) as listener, socket.create_connection(place) as client:
        served, _ = listener.accept()
        served.close()  # the side that closes first waits out its time
        client.recv(1)
    with hold_address(address) as held:
        assert held.getsockname() == place


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_cannot_be_had(host):
    with pytest.raises(InputError, match="cannot serve at"):
        hold_address(Address(host, free_port()))


@pytest.mark.parametrize("name", ["/no/such", "./x", "../x", "~/no-such-model", "a/b/c"])
def test_a_model_that_is_no_directory(name):
    with pytest.raises(InputError, match="no such directory"):
        check_model(name)


@pytest.mark.parametrize("name", ["gpt2", "org/model", "s3://bucket/some/model"])
def test_a_name_on_a_hub_is_vllms_to_find(name):
    check_model(name)


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"holds no model \(no config.json"):
        check_model(str(tmp_path))
    (tmp_path / "params.json").touch()
    check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "args", "offline"),
    [
        ("tiny", [], True),
        ("tiny", ["--port", "81", "--max_num_seqs", "4", "--enforce-eager"], True),
        ("here", ["--seed=1", "--api-key", "--tokenizer"], False),
        ("here", [], True),
        ("org/model", [], False),
        ("here", ["--tokenizer", "org/other"], False),
        ("here", ["--lora-modules", "a=org/adapter"], False),
        ("here", ["--speculative-config.model", "org/draft"], False),
        ("here", ["--config", "options.yaml"], False),
        ("here", ["--trust-remote-code"], False),
        ("here", ["--some-option-of-tomorrow", "1"], False),
        ("here", ["-q", "awq"], False),
    ],
)
def test_the_hub_is_off_only_where_the_command_line_proves_it(
    tmp_path, monkeypatch, model, args, offline
):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    made = server_environment(model, None, RunFiles(tmp_path / "run"), vllm_args=args)
    assert ("HF_HUB_OFFLINE" in made) == offline
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    made = server_environment(model, None, RunFiles(tmp_path / "run"), vllm_args=args)
    assert made["HF_HUB_OFFLINE"] == "0"


def test_options_are_read_as_vllm_reads_them():
    args = ["--a_b=1", "--c", "-2.5", "--d", "--e.f", "x", "-tp", "2", "word"]
    assert given_options(args) == {"--a-b": "1", "--c": "-2.5", "--d": None, "--e": "x", "-tp": "2"}
    assert without_given([("--a-b", "9"), ("--z", None), ("--y", "1")], args) == ["--z", "--y", "1"]
