"""A policy made ready for the engine: built of the settings, compiled, and with a version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lengthwise.scheduler.policies.make import check_policy, make_policy, within_parts
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.serving.installed import installed_version
from lengthwise.scheduler.serving.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class PreparedPolicy:
    """A policy that is compiled and checked, the parameters it was given, and the version that the
    request log will show.

    ``build`` makes another like it.
    """

    policy: Policy
    params: Mapping[str, Any]
    version: str
    build: Callable[[], Policy]


def prepare_policy(
    settings: ServerSettings, name: str, params: Mapping[str, Any] | None = None
) -> PreparedPolicy:
    """A policy ready to plan, with the settings' parameters unless given; else ValueError."""
    given = settings.policy_params if name == settings.policy else {}
    chosen = within_parts(name, given if params is None else params, settings.plan_parts)
    check_policy(name, chosen)

    def build() -> Policy:
        budget_s = settings.plan_budget_ms / 1e3
        return make_policy(name, budget_s=budget_s, seed=settings.seed, **chosen)

    policy = build()
    policy.warm_up()
    return PreparedPolicy(policy, chosen, policy_version(chosen), build)


def policy_version(params: Mapping[str, Any]) -> str:
    """The package's version, and a hash of the parameters where some are given."""
    version = installed_version("lengthwise") or "unknown"
    if not params:
        return version
    text = json.dumps(dict(params), sort_keys=True, default=repr)
    return f"{version}+{hashlib.sha256(text.encode()).hexdigest()[:8]}"
