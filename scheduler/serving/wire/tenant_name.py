"""The tenant that a request is of: a name in our header, a gateway's or the body."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from lengthwise.data.errors import InputError, shown

TENANT_HEADER = "x-tenant"
_GATEWAY_TENANT_HEADERS = ("x-gateway-inference-fairness-id", "x-llm-d-inference-fairness-id")
_GATEWAY_NO_TENANT = "default-flow"
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


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
