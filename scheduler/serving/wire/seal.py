"""Which keys of a sequence's arguments count: the client's own, and ours under a seal.

A client may name any key of ``vllm_xargs``, so the keys that only the server may set (``pred_*``,
``lw_*``) count only under a seal: a keyed hash of all of them with a secret that the processes of
one server share and no client learns. Python gives every process tree such a secret; engines that
are no children of the API process (other hosts) take SECRET_VARIABLE instead.
"""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing
import os
import struct
from collections.abc import Mapping
from typing import Any

SECRET_VARIABLE = "LENGTHWISE_SECRET"
PRIVATE_PREFIXES = ("pred_", "lw_")
PUBLIC_KEYS = frozenset(("slo_class", "slo_ttft_ms", "slo_tpot_ms", "slo_e2e_ms", "tenant", "osl"))
"""What of ours a client may say."""
_SEAL = "lw_seal"
# Of 2,047 bytes and more hashlib gives the interpreter's lock away, and the engine's loop then
# waits for a thread that computes.
_PIECE_BYTES = 2000


def is_private(key: Any) -> bool:
    """Whether only the server may set this key of a sequence's arguments."""
    return isinstance(key, str) and key.startswith(PRIVATE_PREFIXES)


def without_private(xargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a client may set."""
    return {key: value for key, value in xargs.items() if not is_private(key)}


def sealed(xargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the seal that makes their private keys count, where there are any."""
    private = _private(xargs)
    given = dict(xargs)
    given.pop(_SEAL, None)
    if private:
        given[_SEAL] = _seal(private)
    return given


def is_genuine(xargs: Mapping[str, Any]) -> bool:
    """Whether the private keys, if there are any, are sealed by a process of this server."""
    private = _private(xargs)
    if not private and _SEAL not in xargs:
        return True
    said, seal = xargs.get(_SEAL), _seal(private)
    if seal is None or not isinstance(said, str) or not said.isascii():
        return False
    return hmac.compare_digest(said, seal)


def _private(xargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in xargs.items() if is_private(key) and key != _SEAL}


def _seal(private: Mapping[str, Any]) -> str | None:
    """A keyed hash of the keys and values, tuples as lists; None for what cannot be written."""
    said: list[bytes] = []
    try:
        for key in sorted(private):
            name, written = key.encode("utf-8", "surrogatepass"), _written(private[key])
            said += (len(name).to_bytes(8), name, len(written).to_bytes(8), written)
    except (ValueError, RecursionError):  # what a client nested or numbered beyond Python's limits
        return None
    whole, seal = b"".join(said), hashlib.blake2b(key=_secret(), digest_size=16)
    for first in range(0, len(whole), _PIECE_BYTES):
        seal.update(whole[first : first + _PIECE_BYTES])
    return seal.hexdigest()


def _written(value: Any) -> bytes:
    """The value in bytes; the hundreds of numbers of a row of features at once."""
    if isinstance(value, list | tuple):
        try:
            # half of the time that `array` takes to look at each
            return b"numbers" + struct.pack(f"{len(value)}d", *value)
        except (struct.error, TypeError, OverflowError):
            value = list(value)
    return repr(value).encode("utf-8", "surrogatepass")


def _secret() -> bytes:
    """The secret of this server's processes: the operator's, or that of the process tree."""
    given = os.environ.get(SECRET_VARIABLE)
    if given:
        return hashlib.sha256(given.encode()).digest()
    return bytes(multiprocessing.current_process().authkey)
