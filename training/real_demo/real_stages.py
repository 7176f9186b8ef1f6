"""Stages that are done once: what each was asked and found lies in a file, and is kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.data.files import read_object, write_whole
from lengthwise.training.bench.results.provenance import utc_now


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of one run, a JSON file each in `folder`; `say` is told one line of each.

    A stage whose file holds the same settings is not done again, so that a run that was stopped
    goes on where it stopped.
    """

    folder: Path
    say: Callable[[str], None]

    def run(
        self, name: str, settings: Mapping[str, Any], work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What the stage found, now or before: `result`, `seconds`, `load_average`, `at`."""
        path = self.folder / f"{name}.json"
        asked = json.loads(json.dumps(dict(settings)))
        if path.is_file():
            known = read_object(path)
            if known.get("settings") == asked:
                self.say(f"{name}: kept from {known['at']} ({known['seconds']:.0f} s then)")
                return known
        self.say(f"{name} ...")
        before, began = load_average(), time.monotonic()
        result = work()
        seconds = time.monotonic() - began
        done = {
            "settings": asked,
            "result": result,
            "seconds": seconds,
            "load_average": [before, load_average()],
            "at": utc_now(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(done, indent=1, allow_nan=False) + "\n")
        self.say(f"{name}: done in {seconds:.0f} s")
        return done


def load_average() -> float | None:
    """Processes that want a core, over the last minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
