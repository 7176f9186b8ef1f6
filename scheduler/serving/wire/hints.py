"""What the scheduler is told of a sequence: flat keys in its ``extra_args``, sealed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo, SloTable, parse_slo
from lengthwise.scheduler.serving.wire.answer_length import quantile_row
from lengthwise.scheduler.serving.wire.fleet_key import read_fleet_key
from lengthwise.scheduler.serving.wire.seal import is_genuine, sealed, without_private
from lengthwise.scheduler.serving.wire.tenant_name import is_tenant

DOWNGRADED = "downgraded"  # what admission control made of a request's objectives

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
    ``features`` (with their ``contract``) are what it read; ``text_id``, under which the API
    process keeps the prompt's text, is for the request log only. ``whole`` is absent where the
    client's request is this one sequence. ``downgraded`` means served without promises:
    ``promised`` is then best effort. ``textless``: there was nothing to predict on. ``fleet_key``
    is the name by which a router over several engines knows it, ``reestimate_key`` the one under
    which a better estimate may follow (``wire.reestimate``). ``may_stop``: a stop string may end
    it, and the API process says so then (``wire.left_early``).
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
    reestimate_key: str | None = None
    may_stop: bool = False

    @property
    def promised(self) -> Slo:
        """The objectives that count."""
        return Slo(slo_class=self.slo.slo_class) if self.downgraded else self.slo

    def for_planning(self) -> Hints:
        """Without what only the request log reads."""
        return replace(self, shadow=None, shadow_version=None, text_id=None)

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
        if self.reestimate_key is not None:
            xargs["lw_reestimate"] = self.reestimate_key
        if self.may_stop:
            xargs["lw_may_stop"] = True
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
        if not is_genuine(said):
            on_fault("unsealed", None)
            said = without_private(said)
        given = said.get("pred_quantiles")
        quantiles = None if given is None else quantile_row(given, levels)
        if given is not None and quantiles is None:
            on_fault("bad-prediction", given)
        features, shadow = said.get("lw_features"), quantile_row(said.get("lw_shadow"), levels)
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
            fleet_key=read_fleet_key(said.get("lw_fleet_key")),
            reestimate_key=_text(said.get("lw_reestimate")),
            may_stop=said.get("lw_may_stop") is True,
        )


def _whole(said: Mapping[str, Any]) -> Whole | None:
    whole_id, parts = said.get("lw_whole"), said.get("lw_parts")
    if not isinstance(whole_id, str) or not isinstance(parts, int) or parts < 0:
        return None
    return Whole(whole_id, int(parts))


def _read_slo(said: Mapping[str, Any], tables: Sequence[SloTable], on_fault: OnFault) -> Slo:
    first: InputError | None = None
    for table in tables:
        try:
            return parse_slo(said, {}, table)
        except InputError as error:
            first = first or error
    on_fault("slo", first)
    return Slo()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
