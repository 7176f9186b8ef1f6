"""Versions of what is installed."""

from __future__ import annotations

from importlib import metadata


def installed_version(*distributions: str) -> str | None:
    """Of the first of these that is installed; None where none is."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
