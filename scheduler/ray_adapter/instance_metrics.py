"""The metrics of several instances as one page, each series with the name of its instance.

The name is the label ``engine``, which vLLM's own metrics have for data parallel; ``instance`` is
Prometheus's name for what it scrapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LABEL = "engine"
_ENGINE = re.compile(rf'(?:^|(?<=,)){LABEL}="[^"]*"')
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})?( .*)$")


def with_instance(page: str, instance: str) -> list[str]:
    """The page's lines, every sample with the label, in place of its own where it has one."""
    return [_labelled(line, instance) for line in page.splitlines() if line]


def one_page(own: str, pages: Mapping[str, str]) -> str:
    """The front's page, and those of the instances: families together, each described once."""
    families: dict[str, list[str]] = {}
    described: dict[str, list[str]] = {}
    name = "#"  # of the family described last; no sample begins so
    lines = [line for line in own.splitlines() if line]
    for instance, page in pages.items():
        lines += with_instance(page, instance)
    for line in lines:
        if line.startswith("#"):
            words = line.split(" ", 3)
            if len(words) >= 3 and words[1] in ("HELP", "TYPE"):
                name = words[2]
                kept = described.setdefault(name, [])
                if not any(one.split(" ", 3)[1] == words[1] for one in kept):
                    kept.append(line)
                families.setdefault(name, [])
            continue
        own_name = line.split("{", 1)[0].split(" ", 1)[0]
        family = name if own_name.startswith(name) else own_name
        families.setdefault(family, []).append(line)
    out: list[str] = []
    for family, samples in families.items():
        out += described.get(family, []) + samples
    return "\n".join(out) + "\n"


def _labelled(line: str, instance: str) -> str:
    found = _SAMPLE.match(line)
    if line.startswith("#") or found is None:
        return line
    name, labels, value = found.groups()
    said = "" if labels is None else labels[1:-1].rstrip(",")
    own = f'{LABEL}="{instance}"'
    replaced, count = _ENGINE.subn(own, said, count=1)
    if count:
        return f"{name}{{{replaced}}}{value}"
    return f"{name}{{{said},{own}}}{value}" if said else f"{name}{{{own}}}{value}"
