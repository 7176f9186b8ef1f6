"""What can be known of a start before anything loads: the address, the model's folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.server.command_options import given_options

_DEFAULT_PORT = 8000
_LARGEST_PORT = 65_535
_TIME_WAIT = "06"  # of /proc/net/tcp
# What vLLM reads a model from: Hugging Face's, Mistral's and GGUF's.
_MODEL_FILES = ("config.json", "params.json", "*.gguf")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens; ``host`` "" is everywhere; ``options`` of its command say so."""

    host: str
    port: int
    options: str = "--port and --host"

    @property
    def family(self) -> socket.AddressFamily:
        """IPv6 for an address of it, as vLLM has it."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def shown(self) -> str:
        """As people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if host else f"port {self.port}"

    def listens(self) -> bool:
        """Whether somebody takes connections there, from this machine."""
        anywhere = "::1" if self.family == socket.AF_INET6 else "127.0.0.1"
        host = anywhere if self.host in ("", "0.0.0.0", "::") else self.host
        try:
            with socket.create_connection((host, self.port), timeout=1):
                return True
        except OSError:
            return False


def address_of(vllm_args: Sequence[str]) -> Address | None:
    """Where a server with these options will listen; None where they do not prove it.

    Raises InputError for a port that is none.
    """
    given = given_options(vllm_args)
    if given.keys() & {"--uds", "--headless", "--help", "--version"}:
        return None
    if "--config" in given and not {"--port", "--host"} <= given.keys():
        return None  # a file that only vLLM reads
    return Address(given.get("--host") or "", port_of("--port", given, _DEFAULT_PORT))


def port_of(option: str, given: Mapping[str, str | None], default: int) -> int:
    """The port that an option gives; InputError for one that is none."""
    port = given.get(option) or str(default)
    if not port.isdecimal() or int(port) > _LARGEST_PORT:
        raise InputError(f"{option} must be 0 to {_LARGEST_PORT}, got {port!r}")
    return int(port)


def hold_address(address: Address) -> socket.socket:
    """Bind the address without listening, so that no other server of ours takes it meanwhile.

    vLLM can still bind and listen: both sockets may share an address that nobody listens at.
    Raises InputError when it is taken, by a server that still loads too, or cannot be had.
    """
    _bind(address, reuse=True, taken=lambda: True).close()
    # A server that loads has bound its address, and does not listen yet. Only a socket that shares
    # with nobody finds that out, and so do connections that ended a minute ago.
    _bind(address, reuse=False, taken=lambda: not _recently_used(address.port)).close()
    return _bind(address, reuse=True, taken=lambda: True)


def check_model(model: str) -> None:
    """InputError for a model that is named as a folder or file and is none."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not any(any(path.glob(pattern)) for pattern in _MODEL_FILES):
            raise InputError(
                f"model {model!r}: the directory holds no model (no {', '.join(_MODEL_FILES)})"
            )
    elif not path.exists() and _is_path(model):
        raise InputError(f"model {model!r}: there is no such directory")


def _is_path(model: str) -> bool:
    """Whether it cannot be a name on a hub, OWNER/NAME."""
    if "://" in model:  # a bucket
        return False
    return model.startswith(("/", "./", "../", "~", ".\\")) or model.count("/") > 1


def _bind(address: Address, *, reuse: bool, taken: Callable[[], bool]) -> socket.socket:
    made = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        made.bind((address.host, address.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and not taken():
            return made
        made.close()
        why = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise InputError(
            f"cannot serve at {address.shown}: {why}; {address.options} choose another"
        ) from error
    return made


def _recently_used(port: int) -> bool:
    """Whether connections of this port wait out their time, where the system tells."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                local = int(words[1].rpartition(":")[2], 16)
                if local == port and words[3] == _TIME_WAIT:
                    return True
    return not os.path.exists("/proc/net/tcp")  # noqa: PTH110
