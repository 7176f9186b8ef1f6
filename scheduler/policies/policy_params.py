"""What may be set of a policy from outside, and within what bounds.

Parameters come from files that people write, and a plan is made with them in compiled code: what
is no number, or one that no plan can be made with, is told here, in one line with its rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lengthwise.data.errors import shown


@dataclass(frozen=True, slots=True)
class Number:
    """A number from ``low`` to ``high``; ``whole``: without a fraction."""

    low: float
    high: float
    whole: bool = False

    def checked(self, value: Any) -> Any:
        """The value; ValueError says the rule."""
        kind = "a whole number" if self.whole else "a number"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and self.low <= value <= self.high and (not self.whole or value == int(value)):
            return int(value) if self.whole else float(value)
        raise ValueError(f"must be {kind} from {self.low:g} to {self.high:g}")


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def checked(self, value: Any) -> Any:
        """The value; ValueError says the rule."""
        if isinstance(value, bool):
            return value
        raise ValueError("must be true or false")


@dataclass(frozen=True, slots=True)
class Words:
    """A list of some of these words."""

    known: tuple[str, ...]

    def checked(self, value: Any) -> Any:
        """The value as a tuple; ValueError says the rule."""
        if isinstance(value, list | tuple) and all(word in self.known for word in value):
            return tuple(value)
        raise ValueError(f"must be a list of some of {', '.join(self.known)}")


Knob = Number | Flag | Words

_LEAST: Final = 1e-3
_MOST: Final = 1e6
_ROWS: Final = 100_000

KNOBS: dict[str, dict[str, Knob]] = {
    "sa": {
        "iterations": Number(0, _MOST, whole=True),
        "horizon": Number(_LEAST, 1e3),
        "shortest_horizon_s": Number(_LEAST, 86_400),
        "longest_horizon_s": Number(_LEAST, 86_400),
        "most_waiting": Number(2, _ROWS, whole=True),
        "most_expected": Number(0, _ROWS, whole=True),
        "start_quantile": Number(0, 1),
        "spread": Number(0, 10),
        "tpot_spread": Number(0, 10),
        "latency_price": Number(0, _MOST),
        "tokens_price": Number(0, _MOST),
        "backlog_price": Number(0, _MOST),
        "bound_price": Number(0, _MOST),
        "head": Number(2, _ROWS, whole=True),
        "reach": Number(2, _ROWS, whole=True),
        "losing": Number(0, 1),
        "parts": Words(("order", "slots", "limits", "prefill")),
        "uncertain_order": Flag(),
        "trust": Flag(),
    },
    "sa-paper": {
        "t_first": Number(_LEAST * _LEAST, 1e9),
        "t_last": Number(_LEAST * _LEAST, 1e9),
        "steps_per_temperature": Number(1, _MOST, whole=True),
        "decay": Number(_LEAST, 1 - _LEAST),
        "log_g": Flag(),
    },
}
"""By policy; one that is missing here takes none."""


def checked_params(policy: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as the policy takes them; ValueError names the first wrong one, its value and
    the rule."""
    knobs = KNOBS.get(policy, {})
    checked = {}
    for name, value in params.items():
        if name not in knobs:
            known = f"known: {', '.join(sorted(knobs))}" if knobs else "it takes none"
            raise ValueError(
                f"policy {policy!r} has no parameter {shown(name)}, got {shown(value)}; {known}"
            )
        try:
            checked[name] = knobs[name].checked(value)
        except ValueError as error:
            raise ValueError(
                f"policy {policy!r}: parameter {name} {error}, got {shown(value)}"
            ) from None
    return checked
