"""What the registered model, its aliases and our tags are called."""

from __future__ import annotations

import re

from lengthwise.data.errors import InputError

MODEL_NAME = "output-length"
CHAMPION = "champion"
CHALLENGER = "challenger"
SHADOW = "shadow"
DEFAULT_PREDICTOR = f"models:/{MODEL_NAME}@{CHAMPION}"

KIND_TAG = "lengthwise.kind"
MODEL_ID_TAG = "lengthwise.model_id"

_ALIAS = re.compile(r"(?!latest\Z|v\d+\Z)[\w-]{1,255}", re.ASCII)


def check_alias(alias: str) -> str:
    """The alias, or InputError: MLflow would refuse it too, but only after the version is made."""
    if not _ALIAS.fullmatch(alias):
        raise InputError(
            f"alias must be letters, digits, _ or -, and neither 'latest' nor 'v1', got {alias!r}"
        )
    return alias
