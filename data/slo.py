"""Service-level objectives: parsing from the wire, class defaults, and whether they were met.

Objectives follow the definitions of vLLM's own benchmark: TTFT from client send to first token,
TPOT = (e2e - TTFT) / (n - 1), 0 for n <= 1, e2e from client send to last token.
Milliseconds exist on the wire only; everything else is in seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lengthwise.data.errors import InputError, shown

SLO_LIMIT_MS = (1.0, 86_400_000.0)
DEFAULT_CLASS = "default"
OBJECTIVES = ("ttft", "tpot", "e2e")
_FIELDS = tuple(f"{name}_s" for name in OBJECTIVES)
_XARGS = {name: f"slo_{name}_ms" for name in OBJECTIVES}

_HEADER_PREFIXES = ("x-slo-", "x-llm-d-slo-")
_OBJECTIVE_HEADERS = {
    name: tuple(f"{prefix}{name}-ms" for prefix in _HEADER_PREFIXES) for name in OBJECTIVES
}
_CLASS_HEADERS = tuple(f"{prefix}class" for prefix in _HEADER_PREFIXES)
_GATEWAY_CLASS_HEADERS = ("x-gateway-inference-objective", "x-llm-d-inference-objective")
_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Slo:
    """Objectives of one request in seconds; None = absent. Raises InputError outside the limits."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    slo_class: str = DEFAULT_CLASS

    def __post_init__(self) -> None:
        given = (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s), ("e2e_s", self.e2e_s))
        for name, seconds in given:
            if seconds is not None:
                object.__setattr__(self, name, _checked_s(seconds, name))
        check_class_name(self.slo_class)

    @property
    def is_best_effort(self) -> bool:
        """True when no objective is given."""
        return self.ttft_s is None and self.tpot_s is None and self.e2e_s is None

    @property
    def is_lost(self) -> bool:
        """True when an objective lies at the lower limit: nothing can meet it any more."""
        given = (self.ttft_s, self.tpot_s, self.e2e_s)
        least_s = SLO_LIMIT_MS[0] / 1e3 * (1 + 1e-9)
        return any(limit is not None and limit <= least_s for limit in given)

    def met(self, ttft_s: float, tpot_s: float, e2e_s: float) -> bool:
        """Whether all given objectives hold; a NaN measurement misses its objective."""
        pairs = ((self.ttft_s, ttft_s), (self.tpot_s, tpot_s), (self.e2e_s, e2e_s))
        return all(limit is None or measured <= limit for limit, measured in pairs)

    def to_xargs(self) -> dict[str, float | str]:
        """The flat `vllm_xargs` keys that `parse_slo` reads back to an equal Slo."""
        xargs: dict[str, float | str] = {"slo_class": self.slo_class}
        for name in OBJECTIVES:
            seconds = getattr(self, f"{name}_s")
            if seconds is not None:
                xargs[f"slo_{name}_ms"] = seconds * 1000.0
        return xargs


class SloTable(Mapping[str, Slo]):
    """Class name -> default objectives and weight, as an operator configures them.

    An empty table accepts any class; a filled one only its own and `default`.
    """

    def __init__(self, slos: Mapping[str, Slo], weights: Mapping[str, float] | None = None) -> None:
        self._slos = dict(slos)
        self._weights = dict(weights or {})

    @classmethod
    def from_dict(cls, classes: Mapping[str, Mapping[str, Any]]) -> SloTable:
        """From `{"chat": {"ttft_ms": .., "tpot_ms": .., "e2e_ms": .., "weight": 1.0}}`."""
        if not isinstance(classes, Mapping):
            raise InputError(f"the SLO table must be an object of classes, got {shown(classes)}")
        slos: dict[str, Slo] = {}
        weights: dict[str, float] = {}
        allowed = {f"{name}_ms" for name in OBJECTIVES} | {"weight"}
        for slo_class, row in classes.items():
            check_class_name(slo_class)
            if not isinstance(row, Mapping):
                raise InputError(f"SLO class {slo_class!r} must be an object, got {shown(row)}")
            unknown = sorted(str(key) for key in set(row) - allowed)
            if unknown:
                raise InputError(
                    f"SLO class {slo_class!r} has unknown key {shown(unknown[0])}; "
                    f"known: {', '.join(sorted(allowed))}"
                )
            slos[slo_class] = Slo(**_seconds(row), slo_class=slo_class)
            weights[slo_class] = _weight(slo_class, row.get("weight", 1.0))
        return cls(slos, weights)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """The form that `from_dict` reads."""
        table = {}
        for slo_class, slo in self._slos.items():
            row = {
                f"{name}_ms": getattr(slo, f"{name}_s") * 1000.0
                for name in OBJECTIVES
                if getattr(slo, f"{name}_s") is not None
            }
            table[slo_class] = {**row, "weight": self.weight(slo_class)}
        return table

    def known_class(self, *names: Any) -> str | None:
        """The first of the names that may be a request's class; None for none of them."""
        for name in names:
            if is_class_name(name) and (name in self._slos or not self._slos):
                return str(name)
        return None

    def weight(self, slo_class: str | None) -> float:
        """What meeting one request of this class is worth; 1 unless configured."""
        return self._weights.get(slo_class or DEFAULT_CLASS, 1.0)

    def resolve(self, slo_class: str | None, given: Mapping[str, Any] | None = None) -> Slo:
        """The class's objectives overridden by `given` (`ttft_ms`, `tpot_ms`, `e2e_ms`).

        Raises InputError for a class the table does not know, or a value outside SLO_LIMIT_MS.
        """
        name = self._checked(slo_class)
        return self._completed(name, _seconds(given or {}))

    def _checked(self, slo_class: str | None) -> str:
        name = DEFAULT_CLASS if slo_class is None else check_class_name(slo_class)
        if self._slos and name not in self._slos and name != DEFAULT_CLASS:
            known = ", ".join(sorted(self._slos))
            raise InputError(f"unknown slo_class {shown(name)}; known: {known}")
        return name

    def _completed(self, name: str, given_s: dict[str, float]) -> Slo:
        """What is given, in seconds by field, and the rest from the class's defaults."""
        default = self._slos.get(name)
        if default is not None:
            for field in _FIELDS:
                if field not in given_s and (value := getattr(default, field)) is not None:
                    given_s[field] = value
        return Slo(**given_s, slo_class=name)

    def __getitem__(self, slo_class: str) -> Slo:
        return self._slos[slo_class]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slos)

    def __len__(self) -> int:
        return len(self._slos)

    def __repr__(self) -> str:
        return f"SloTable({self.to_dict()!r})"


def parse_slo(
    xargs: Mapping[str, Any] | None, headers: Mapping[str, str] | None, table: SloTable
) -> Slo:
    """The SLO of a request from its body and headers, completed from the table.

    Body keys `slo_ttft_ms`, `slo_tpot_ms`, `slo_e2e_ms`, `slo_class` win over the headers
    `x-slo-ttft-ms` ... `x-slo-class`, those over llm-d's `x-llm-d-slo-*`, all over the table's
    defaults; then the class may be a gateway's objective, if the table knows it. What is null or
    empty is absent. A time outside SLO_LIMIT_MS is taken as the nearer limit: one of 0 or less is
    lost already (`Slo.is_lost`). Raises InputError on anything malformed.
    """
    if xargs is not None and not isinstance(xargs, Mapping):
        raise InputError(f"vllm_xargs must be an object, got {shown(xargs)}")
    lowered = {str(key).lower(): value for key, value in (headers or {}).items()}
    said = xargs or {}

    def find(key: str, headers: tuple[str, ...]) -> Any:
        if not _is_absent(value := said.get(key)):
            return value
        for header in headers:
            if not _is_absent(value := lowered.get(header)):
                return value
        return None

    given_s = {}
    for name, field in zip(OBJECTIVES, _FIELDS, strict=True):
        value = find(_XARGS[name], _OBJECTIVE_HEADERS[name])
        if value is not None:
            given_s[field] = _clamped_ms(value, name) / 1e3
    slo_class = find("slo_class", _CLASS_HEADERS)
    if slo_class is None:
        slo_class = table.known_class(*(lowered.get(name) for name in _GATEWAY_CLASS_HEADERS))
    return table._completed(table._checked(slo_class), given_s)


def check_class_name(slo_class: Any) -> str:
    """The class name itself, or InputError: 1-64 letters, digits, or `_.:-`."""
    if not is_class_name(slo_class):
        raise InputError(
            f"slo_class must be 1-64 letters, digits or _.:- and start with a letter or digit, "
            f"got {shown(slo_class)}"
        )
    return str(slo_class)


def is_class_name(value: Any) -> bool:
    """Whether a value may be a class's name (`check_class_name`)."""
    return isinstance(value, str) and _CLASS_NAME.fullmatch(value) is not None


def _seconds(given_ms: Mapping[str, Any]) -> dict[str, float]:
    """Of the objectives given (`ttft_ms` ...), by field."""
    given = {name: given_ms.get(f"{name}_ms") for name in OBJECTIVES}
    return {f"{name}_s": _ms(ms, name) / 1e3 for name, ms in given.items() if ms is not None}


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _clamped_ms(value: Any, name: str) -> float:
    """A request's objective within the limits."""
    number = parse_number(value)
    if math.isnan(number):
        raise InputError(f"slo_{name}_ms must be a number of milliseconds, got {shown(value)}")
    return min(max(number, SLO_LIMIT_MS[0]), SLO_LIMIT_MS[1])


def parse_number(value: Any) -> float:
    """The number, also one written as text; infinite if it is an integer beyond the upper limit of
    times; NaN for what is none."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) or abs(value) <= SLO_LIMIT_MS[1]:
            return float(value)
        return math.inf if value > 0 else -math.inf  # integers may be too large for a float
    return math.nan


def _ms(value: Any, name: str) -> float:
    number = parse_number(value)
    if not SLO_LIMIT_MS[0] <= number <= SLO_LIMIT_MS[1]:
        low, high = SLO_LIMIT_MS
        raise InputError(
            f"slo_{name}_ms must be a number of milliseconds from {low:g} to {high:.0f}, "
            f"got {shown(value)}"
        )
    return number


def _checked_s(seconds: Any, name: str) -> float:
    low, high = SLO_LIMIT_MS[0] / 1000.0, SLO_LIMIT_MS[1] / 1000.0
    valid = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    # 1e-9 of slack: 1 ms need not survive the division by 1,000 exactly
    if not (valid and low * (1 - 1e-9) <= seconds <= high * (1 + 1e-9)):
        raise InputError(f"{name} must lie from {low:g} to {high:g} seconds, got {shown(seconds)}")
    return float(seconds)


def _weight(slo_class: str, weight: Any) -> float:
    numeric = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (numeric and 0 < weight <= 1e6):
        raise InputError(
            f"the weight of SLO class {slo_class!r} must lie in (0, 1e6], got {shown(weight)}"
        )
    return float(weight)
