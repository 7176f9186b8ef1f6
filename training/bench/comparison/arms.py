"""The arms of a comparison: their names, their order, and how a server is switched to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.scheduler.policies.make import POLICIES
from lengthwise.training.bench.engines.client import BenchError, new_session

LENGTHS = ("learned", "class", "oracle", "none")
STOCK = "stock"
DEFAULT_ARMS = "sa:learned"


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy with a source of lengths; `stock` is vLLM without any of our classes.

    `name` tells apart what the two do not (two predictors, two settings of a policy); `params`
    are the policy's. `router` says how requests find their instance, where there are several.
    """

    policy: str
    lengths: str
    name: str | None = None
    params: tuple[tuple[str, Any], ...] = ()
    router: str | None = None

    @property
    def label(self) -> str:
        """Its name, else as written on the command line."""
        return self.name or arm_label(self.kind, self.router)

    @property
    def kind(self) -> str:
        """As written on the command line."""
        return self.policy if self.is_stock else f"{self.policy}:{self.lengths}"

    @property
    def is_stock(self) -> bool:
        """Whether this is unmodified vLLM."""
        return self.policy == STOCK


def arm_label(kind: str, router: str | None) -> str:
    """An arm without a name: its policy and lengths, behind a router where there is one."""
    return kind if router is None else f"{router}/{kind}"


def parse_arm(
    text: str, *, default_lengths: str | None = None, policies: tuple[str, ...] = POLICIES
) -> Arm:
    """`POLICY:LENGTHS` (or `POLICY`, where a default for the lengths is given).

    Raises:
        InputError: unknown policy or lengths.
    """
    policy, colon, lengths = text.strip().partition(":")
    if policy not in policies:
        raise InputError(f"unknown policy {policy!r}: must be one of {', '.join(policies)}")
    if not colon and default_lengths is not None:
        lengths = default_lengths
    if lengths not in LENGTHS:
        raise InputError(
            f"unknown lengths {lengths!r} in arm {text!r}: must be one of {', '.join(LENGTHS)}"
        )
    return Arm(policy, lengths)


def parse_arms(
    text: str, *, default_lengths: str | None = None, policies: tuple[str, ...] = POLICIES
) -> tuple[Arm, ...]:
    """Comma-separated arms, each once; ``policies`` are those there are to choose from.

    Raises:
        InputError: none given, one given twice, or one unknown.
    """
    arms = tuple(
        parse_arm(part, default_lengths=default_lengths, policies=policies)
        for part in text.split(",")
        if part.strip()
    )
    if not arms:
        raise InputError(f"no arm in {text!r}: give POLICY:LENGTHS, e.g. {DEFAULT_ARMS}")
    if len(set(arms)) < len(arms):
        raise InputError(f"an arm stands twice in {text!r}")
    return arms


def arm_order(arms: tuple[Arm, ...], repeat: int) -> tuple[Arm, ...]:
    """Order in the given repeat: rotated by one each time, so that none is always first."""
    shift = repeat % len(arms)
    return arms[shift:] + arms[:shift]


STOCK_ARM = Arm(STOCK, "none")


async def configure(url: str, arm: Arm) -> None:
    """Switch our server to `arm` and start its plan statistics afresh.

    Raises:
        BenchError: the server refused.
    """
    body = {
        "policy": arm.policy,
        "policy_params": dict(arm.params) or None,
        "lengths": arm.lengths,
        "reset_stats": True,
    }
    await post_configure(url, body)


async def post_configure(url: str, body: dict[str, Any]) -> None:
    """POST /lengthwise/configure.

    Raises:
        BenchError: the server refused.
    """
    async with new_session() as session:
        async with session.post(f"{url}/lengthwise/configure", json=body) as response:
            text = await response.text()
        if response.status != 200:
            raise BenchError(f"the server refused {body}: HTTP {response.status}: {text[:300]}")


async def server_status(url: str) -> dict[str, Any]:
    """GET /lengthwise/status."""
    async with new_session() as session, session.get(f"{url}/lengthwise/status") as response:
        response.raise_for_status()
        return dict(await response.json())
