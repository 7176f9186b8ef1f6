"""The policies by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lengthwise.data.errors import shown
from lengthwise.scheduler.policies.annealing import AnnealingPolicy
from lengthwise.scheduler.policies.paper import PaperPolicy, PaperSettings
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.policies.policy_params import checked_params
from lengthwise.scheduler.policies.rules import RULES, RulePolicy

POLICIES = (
    "fcfs",
    "priority",
    "sjf",
    "edf",
    "llf",
    "feasible-sjf",
    "feasible-edf",
    "hrrn",
    "sa-paper",
    "sa",
)


def make_policy(
    name: str, *, budget_s: float | None = None, seed: int = 0, **params: Any
) -> Policy:
    """The policy called ``name``, one of POLICIES; ``params`` go to it.

    ``sa`` takes the fields of ``annealing_settings.Settings`` and ``iterations``, the most search
    steps of a plan; ``sa-paper`` takes the fields of ``PaperSettings``. Without ``budget_s``,
    seconds a plan may take, plans depend on the problems and the seed alone.

    Raises ValueError for an unknown name, and for a parameter that is unknown or out of bounds.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown policy {shown(name)}; known are {', '.join(POLICIES)}")
    params = checked_params(name, params)
    if name == "sa":
        return AnnealingPolicy.with_params(budget_s, seed, **params)
    if name == "sa-paper":
        return PaperPolicy(budget_s, seed, PaperSettings(**params))
    return RulePolicy(name, RULES[name])


def within_parts(
    name: str, params: Mapping[str, Any], parts: Collection[str] | None
) -> dict[str, Any]:
    """The parameters for an engine that can carry out these parts of a plan only; None: all.

    Raises ValueError where more is asked for.
    """
    if name != "sa" or parts is None:
        return dict(params)
    asked = params.get("parts", parts)
    if beyond := set(asked) - set(parts):
        raise ValueError(
            f"sa may decide {', '.join(parts)} on this engine, not {', '.join(sorted(beyond))}"
        )
    return {**params, "parts": tuple(asked)}


def check_policy(name: str | None, params: Mapping[str, Any]) -> None:
    """Whether somebody's file or request may ask for this policy with these parameters.

    Raises ValueError as ``make_policy`` does, for what the server sets itself, and for parameters
    of no policy.
    """
    if name is None:
        raise ValueError(f"policy_params need a policy, got {shown(params)}")
    make_policy(name, **(checked_params(name, params) if name in POLICIES else {}))
