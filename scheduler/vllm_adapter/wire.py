"""All that the API process and the engine process say to each other, and what both hold it to.

``Hints`` travel with each sequence, flat in its ``extra_args`` and sealed; a ``Question`` on
admission is answered by an ``Answer``; the rest are the names of utility calls and the bodies that
switch a running engine. Who writes a message and who reads it find both directions here.

**Seal.** A client may name any key of ``vllm_xargs``, so the keys that only the server may set
(``pred_*``, ``lw_*``) count only under a seal: a keyed hash of all of them with a secret that the
processes of one server share and no client learns. Python gives every process tree such a secret;
engines that are no children of the API process (other hosts) take SECRET_VARIABLE instead.
"""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing
import os
import re
import secrets
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from lengthwise.data.arrays import FloatArray
from lengthwise.data.errors import InputError, shown
from lengthwise.data.request_log.schema import FIXED_LENGTH
from lengthwise.data.slo import Slo, SloTable, parse_slo
from lengthwise.scheduler.vllm_adapter.settings import Lengths, first_fault

STATUS_METHOD = "lengthwise_status"
CONFIGURE_METHOD = "lengthwise_configure"
ADMIT_METHOD = "lengthwise_admit"
LOAD_METHOD = "lengthwise_load"
WHOLE_ENDED_METHOD = "lengthwise_whole_ended"

SECRET_VARIABLE = "LENGTHWISE_SECRET"
PRIVATE_PREFIXES = ("pred_", "lw_")
PUBLIC_KEYS = frozenset(("slo_class", "slo_ttft_ms", "slo_tpot_ms", "slo_e2e_ms", "tenant", "osl"))
"""What of ours a client may say."""
_SEAL = "lw_seal"
_FRONT_BITS, _NUMBER_BITS = 20, 42  # of a router's key for a request: 62 bits in all

DEFAULT_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MAX_TOKENS_LIMIT = 10_000_000

DOWNGRADED = "downgraded"  # what admission control made of a request's objectives
CLIENT_LENGTH = "osl"  # the version of a length that the client gave
TOLD_LENGTHS = frozenset((CLIENT_LENGTH, FIXED_LENGTH))
"""Versions of lengths that no predictor said: nothing is learned from them."""

TENANT_HEADER = "x-tenant"
_GATEWAY_TENANT_HEADERS = ("x-gateway-inference-fairness-id", "x-llm-d-inference-fairness-id")
_GATEWAY_NO_TENANT = "default-flow"
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is said of a prompt: quantiles in tokens on the predictor's levels, and from which
    features, (f,), under which contract."""

    quantiles: Sequence[float]
    version: str | None
    features: np.ndarray | None = None
    contract: str | None = None


OnFault = Callable[[str, object], None]
"""Told what was malformed ("slo", "bad-prediction") and how."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The client's request that a sequence is a part of; ``parts`` 0 while nobody knows how many.

    All parts together have one outcome.
    """

    whole_id: str
    parts: int = 0


class Numbers(list[float]):
    """Hundreds of numbers that nobody changes: not copied with the sampling parameters that they
    ride in, nor printed with them, which vLLM does under ``--enable-log-requests``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} numbers>"

    def __deepcopy__(self, memo: Any) -> Numbers:
        return self


@dataclass(frozen=True, slots=True)
class Hints:
    """What the scheduler is told of a sequence beside the sequence itself.

    ``quantiles`` and ``shadow`` are tokens at the predictor's levels, as it said them;
    ``features`` (with their ``contract``) and ``text_id``, under which the API process keeps the
    prompt's text, are for the request log only. ``whole`` is absent where the client's request is
    this one sequence. ``downgraded`` means served without promises: ``promised`` is then best
    effort. ``textless``: there was nothing to predict on. ``fleet_key`` is the name by which a
    router over several engines knows it.
    """

    slo: Slo = field(default_factory=Slo)
    tenant: str | None = None
    quantiles: tuple[float, ...] | None = None
    version: str | None = None
    features: tuple[float, ...] | None = None
    contract: str | None = None
    shadow: tuple[float, ...] | None = None
    shadow_version: str | None = None
    text_id: str | None = None
    whole: Whole | None = None
    downgraded: bool = False
    textless: bool = False
    fleet_key: int | None = None

    @property
    def promised(self) -> Slo:
        """The objectives that count."""
        return Slo(slo_class=self.slo.slo_class) if self.downgraded else self.slo

    def for_planning(self) -> Hints:
        """Without what only the request log reads."""
        return replace(
            self, features=None, contract=None, shadow=None, shadow_version=None, text_id=None
        )

    def to_xargs(self) -> dict[str, Any]:
        """Flat keys, sealed, that ``from_xargs`` reads back; absent is what was not said."""
        xargs: dict[str, Any] = {"lw_admission": DOWNGRADED} if self.downgraded else {}
        xargs |= self.slo.to_xargs()
        if self.tenant is not None:
            xargs["tenant"] = self.tenant
        if self.quantiles is not None:
            xargs["pred_quantiles"] = list(self.quantiles)
            if self.version:
                xargs["pred_version"] = self.version
        if self.features is not None:
            xargs["lw_features"] = Numbers(self.features)
            xargs["lw_contract"] = self.contract
        if self.shadow is not None:
            xargs["lw_shadow"] = list(self.shadow)
            xargs["lw_shadow_version"] = self.shadow_version
        if self.text_id is not None:
            xargs["lw_text_id"] = self.text_id
        if self.whole is not None:
            xargs["lw_whole"] = self.whole.whole_id
            xargs["lw_parts"] = self.whole.parts
        if self.textless:
            xargs["lw_textless"] = True
        if self.fleet_key is not None:
            xargs["lw_fleet_key"] = self.fleet_key
        return sealed(xargs)

    @classmethod
    def from_xargs(
        cls, xargs: Any, tables: Sequence[SloTable], levels: int, on_fault: OnFault
    ) -> Hints:
        """What is said, by the first of ``tables`` that knows the class; ``levels`` quantiles.

        Never raises, since nothing a client sends may stop the engine: what is malformed, and
        private keys without this server's seal, go to ``on_fault`` and count as not said.
        """
        said: Mapping[str, Any] = xargs if isinstance(xargs, Mapping) else {}
        if not _is_genuine(said):
            on_fault("unsealed", None)
            said = without_private(said)
        given = said.get("pred_quantiles")
        quantiles = None if given is None else _row(given, levels)
        if given is not None and quantiles is None:
            on_fault("bad-prediction", given)
        features, shadow = said.get("lw_features"), _row(said.get("lw_shadow"), levels)
        return cls(
            slo=_read_slo(said, tables, on_fault),
            tenant=said["tenant"] if is_tenant(said.get("tenant")) else None,
            quantiles=quantiles,
            version=_text(said.get("pred_version")),
            features=tuple(features) if isinstance(features, list | tuple) else None,
            contract=_text(said.get("lw_contract")),
            shadow=shadow,
            shadow_version=None if shadow is None else _text(said.get("lw_shadow_version")),
            text_id=_text(said.get("lw_text_id")),
            whole=_whole(said),
            downgraded=said.get("lw_admission") == DOWNGRADED,
            textless=said.get("lw_textless") is True,
            fleet_key=_fleet_key(said.get("lw_fleet_key")),
        )


def is_private(key: Any) -> bool:
    """Whether only the server may set this key of a sequence's arguments."""
    return isinstance(key, str) and key.startswith(PRIVATE_PREFIXES)


def without_private(xargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a client may set."""
    return {key: value for key, value in xargs.items() if not is_private(key)}


def sealed(xargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the seal that makes their private keys count, where there are any."""
    private = _private(xargs)
    given = {key: value for key, value in xargs.items() if key != _SEAL}
    return given | {_SEAL: _seal(private)} if private else given


def _is_genuine(xargs: Mapping[str, Any]) -> bool:
    if not any(is_private(key) for key in xargs):
        return True
    said, seal = xargs.get(_SEAL), _seal(_private(xargs))
    if seal is None or not isinstance(said, str) or not said.isascii():
        return False
    return hmac.compare_digest(said, seal)


def _private(xargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in xargs.items() if is_private(key) and key != _SEAL}


def _seal(private: Mapping[str, Any]) -> str | None:
    """A keyed hash of the keys and values, tuples as lists; None for what cannot be written."""
    said: list[bytes] = []
    try:
        for key, value in sorted(private.items()):
            name, written = key.encode("utf-8", "surrogatepass"), _written(value)
            said += (len(name).to_bytes(8), name, len(written).to_bytes(8), written)
    except (ValueError, RecursionError):  # what a client nested or numbered beyond Python's limits
        return None
    return hashlib.blake2b(b"".join(said), key=_secret(), digest_size=16).hexdigest()


def _written(value: Any) -> bytes:
    """The value in bytes; the hundreds of numbers of a row of features at once."""
    if isinstance(value, list | tuple):
        with suppress(TypeError, OverflowError):
            return b"numbers" + array("d", value).tobytes()
        value = list(value)
    return repr(value).encode("utf-8", "surrogatepass")


def _secret() -> bytes:
    """The secret of this server's processes: the operator's, or that of the process tree."""
    given = os.environ.get(SECRET_VARIABLE)
    if given:
        return hashlib.sha256(given.encode()).digest()
    return bytes(multiprocessing.current_process().authkey)


def new_fleet_key(front: int) -> int:
    """A name for a request that no other has, also not one of another router (``front``)."""
    return (front << _NUMBER_BITS) | secrets.randbits(_NUMBER_BITS)


def new_front() -> int:
    """A number for a router, which its keys carry."""
    return secrets.randbits(_FRONT_BITS)


def front_of(key: int | None) -> int | None:
    """The router that a key is of; None of none."""
    return None if key is None else key >> _NUMBER_BITS


def _fleet_key(value: Any) -> int | None:
    most = 1 << (_FRONT_BITS + _NUMBER_BITS)
    return value if type(value) is int and 0 <= value < most else None


def _whole(said: Mapping[str, Any]) -> Whole | None:
    whole_id, parts = said.get("lw_whole"), said.get("lw_parts")
    if not isinstance(whole_id, str) or not isinstance(parts, int) or parts < 0:
        return None
    return Whole(whole_id, int(parts))


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a request that the API process holds back is to be admitted; asked in time only."""

    hints: Hints
    prompt_tokens: int
    max_tokens: int | None
    deadline_unix_s: float

    def to_wire(self) -> dict[str, Any]:
        """Plain values for a utility call."""
        return {
            "xargs": self.hints.to_xargs(),
            "prompt_tokens": self.prompt_tokens,
            "max_tokens": self.max_tokens,
            "deadline_unix_s": self.deadline_unix_s,
        }

    @classmethod
    def from_wire(cls, body: Mapping[str, Any], read: Callable[[Any], Hints]) -> Question:
        """The question; ``read`` makes hints of its xargs. KeyError, ValueError when malformed."""
        most = body["max_tokens"]
        return cls(
            hints=read(body["xargs"]),
            prompt_tokens=int(body["prompt_tokens"]),
            max_tokens=None if most is None else int(most),
            deadline_unix_s=float(body["deadline_unix_s"]),
        )


Action = Literal["admit", "shed", "downgrade"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The engine's verdict; ``retry_after_s`` where the request is to be shed."""

    action: Action = "admit"
    retry_after_s: float | None = None

    def to_wire(self) -> dict[str, Any]:
        """Plain values for a utility call."""
        if self.action == "admit":
            return {"action": self.action}
        return {"action": self.action, "retry_after_s": self.retry_after_s}

    @classmethod
    def from_wire(cls, body: Mapping[str, Any]) -> Answer:
        """The verdict; KeyError or ValueError when malformed."""
        if body["action"] not in get_args(Action):
            known = ", ".join(get_args(Action))
            raise ValueError(f"action must be one of {known}, got {shown(body['action'])}")
        return cls(body["action"], body.get("retry_after_s"))


def _read_slo(said: Mapping[str, Any], tables: Sequence[SloTable], on_fault: OnFault) -> Slo:
    first: InputError | None = None
    for table in tables:
        try:
            return parse_slo(said, {}, table)
        except InputError as error:
            first = first or error
    on_fault("slo", first)
    return Slo()


def _row(values: Any, levels: int) -> tuple[float, ...] | None:
    row = check_quantiles(values, levels)
    return None if row is None else tuple(row.tolist())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def plain(value: Any) -> Any:
    """The value as msgpack takes it: numpy's numbers and arrays become Python's.

    One value of another kind in an answer would end the thread that sends all of the engine's.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    return str(value)


def rounded(quantiles: Sequence[float]) -> tuple[float, ...]:
    """Quantiles in tokens for the wire: hundredths, at least 1, at most MAX_TOKENS_LIMIT."""
    return tuple(min(max(1.0, round(value, 2)), float(MAX_TOKENS_LIMIT)) for value in quantiles)


def fixed_tokens(
    max_tokens: Any, min_tokens: Any = 0, ignore_eos: Any = False, may_stop: Any = False
) -> int | None:
    """The length of an answer that cannot have another, or None.

    ``may_stop``: stop strings, tokens or patterns may end it before ``max_tokens``.
    """
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        return None
    least = min_tokens if isinstance(min_tokens, int) else 0
    endless = ignore_eos is True and not may_stop
    return max_tokens if max_tokens == 1 or least >= max_tokens or endless else None


def check_quantiles(values: Any, count: int) -> FloatArray | None:
    """A prediction off the wire as ``(q,)`` non-decreasing tokens >= 1; None when malformed."""
    if not isinstance(values, list | tuple) or len(values) != count:
        return None
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(row).all() or row[0] < 1 or row[-1] > MAX_TOKENS_LIMIT:
        return None
    return row if bool((np.diff(row) >= 0).all()) else None


def clip_to_max_tokens(quantiles: FloatArray, max_tokens: int | None) -> FloatArray:
    """An answer cannot be longer than the client allows."""
    return quantiles if not max_tokens else np.minimum(quantiles, float(max(1, max_tokens)))


def parse_tenant(xargs: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """The tenant's name, or None; InputError for one of our keys that breaks the rule.

    Our header wins, then the gateway's, then the body. A gateway's id is not ours to refuse: one
    that is no name becomes a name made of its hash.
    """
    name = _given(headers.get(TENANT_HEADER))
    if name is None:
        for header in _GATEWAY_TENANT_HEADERS:
            flow = _given(headers.get(header))
            if flow is not None and flow != _GATEWAY_NO_TENANT:
                return flow if is_tenant(flow) else _hashed_name(flow)
        name = _given(xargs.get("tenant"))
    if name is not None and not is_tenant(name):
        raise InputError(f"tenant must be 1-64 letters, digits or _.:-, got {shown(name)}")
    return name


def _given(value: Any) -> Any:
    """The value; None where it is empty, which means absent."""
    return None if isinstance(value, str) and not value.strip() else value


def _hashed_name(flow: str) -> str:
    return "flow-" + hashlib.sha256(flow.encode("utf-8", "replace")).hexdigest()[:16]


def is_tenant(name: Any) -> bool:
    """Whether this may be a tenant's name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


class ConfigureRequest(BaseModel):
    """Body of ``POST /lengthwise/configure``; what is absent stays as it is.

    ``log_steps`` writes steps to the file of the server's own setting ``step_log``, or stops it.
    """

    model_config = ConfigDict(extra="forbid")

    policy: str | None = None
    lengths: Lengths | None = None
    log_steps: bool | None = None
    reset_stats: bool = False


class EngineRequest(ConfigureRequest):
    """What the API process may tell the engine: no client can name these paths and tables.

    ``predictor_dir`` (with its label ``predictor_version``) is another predictor, of
    the same levels.
    """

    predictor_dir: str | None = None
    predictor_version: str | None = None
    policy_params: dict[str, Any] | None = None
    slo_table: dict[str, dict[str, float]] | None = None


_Request = TypeVar("_Request", bound=ConfigureRequest)


def parse_request(kind: type[_Request], body: Any) -> _Request:
    """A checked request of this kind; InputError names the key and the rule."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise InputError(first_fault(error)) from error
