"""Keep a server's live file in step with the registry: who moves an alias moves the server.

MLflow is asked only here, beside the server and never in it. A store that is locked, missing or
unreadable leaves the file as it is, and is told once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object
from lengthwise.scheduler.serving.live import (
    LivePredictor,
    LiveState,
    make_live,
    read_live,
    write_live,
)
from lengthwise.training.registry.model_names import CHAMPION, MODEL_NAME, SHADOW
from lengthwise.training.registry.models import resolve_predictor, version_aliases
from lengthwise.training.workspace import Workspace

Say = Callable[[str], None]
DEFAULT_POLL_S = 30.0


def followed_alias(predictor: str) -> str | None:
    """The alias in ``models:/output-length@ALIAS``; None for what does not move."""
    match = re.fullmatch(rf"models:/{re.escape(MODEL_NAME)}@([^/@]+)", predictor)
    return match[1] if match else None


class Follower:
    """Brings a live state's predictor and shadow up to the registry's aliases."""

    def __init__(self, workspace: Workspace, say: Say, champion: str = CHAMPION) -> None:
        self._workspace = workspace
        self._say = say
        self._champion = champion
        self._told = ""

    def update(self, state: LiveState) -> LiveState:
        """The state with what the aliases name now; the same state when MLflow does not say."""
        try:
            aliases = version_aliases(self._workspace)
            predictor = self._newest(aliases.get(self._champion), state.predictor)
            shadow = self._shadow(aliases, state.shadow)
        except Exception as error:  # whatever MLflow does, the server keeps what it has
            self._tell_once(f"registry: {error}; the server keeps what it has")
            return state
        self._told = ""
        return state.model_copy(update={"predictor": predictor or state.predictor} | shadow)

    def _shadow(self, aliases: dict[str, int], now: LivePredictor | None) -> dict[str, Any]:
        number = aliases.get(SHADOW)
        if number == aliases.get(self._champion):
            number = None  # it would only repeat what the champion says
        return {"shadow": None if number is None else self._newest(number, now)}

    def _newest(self, number: int | None, now: LivePredictor | None) -> LivePredictor | None:
        if number is None:
            return now
        label = f"models:/{MODEL_NAME}/{number}"
        if now is not None and now.version == label:
            return now
        resolved = resolve_predictor(label, workspace=self._workspace)
        return LivePredictor(directory=str(resolved.directory), version=label)

    def _tell_once(self, message: str) -> None:
        if message != self._told:
            self._told = message
            self._say(message)


class FileKeeper:
    """Keeps the live file of `lengthwise serve`: the registry's aliases, and files on SIGHUP.

    ``readers`` are what a SIGHUP reads anew: each gives fields of the live state and raises
    InputError where a file is wrong, which leaves those fields as they are. ``beside`` is called
    at every look.
    """

    def __init__(
        self,
        follower: Follower | None,
        say: Say,
        readers: tuple[Callable[[], dict[str, Any]], ...] = (),
        poll_s: float = DEFAULT_POLL_S,
        beside: Callable[[], None] = lambda: None,
    ) -> None:
        self._beside = beside
        self.poll_s = poll_s
        self._follower = follower
        self._say = say
        self._readers = readers

    def keep(self, live_file: Path, reread: bool) -> None:
        """Rewrite the file where anything moved; ``reread`` also looks at the operator's files."""
        before = state = read_live(live_file)
        for reader in self._readers if reread else ():
            try:
                state = make_live(state.model_dump() | reader(), "live file")
            except InputError as error:
                self._say(f"not reloaded: {error}")
        if self._follower is not None:
            state = self._follower.update(state)
        if state != before:
            write_live(live_file, state)
            self._say(f"live file: {shown_change(before, state)}")
        elif reread:
            self._say("live file: nothing has changed")
        self._beside()


def follow(
    live_file: Path, follower: Follower, *, poll_s: float, once: bool, say: Say
) -> LiveState:
    """Keep the file until interrupted (or look once); returns its last state.

    A file that is missing, or goes missing, is made (again). Raises InputError for a file that is
    no live file, or whose folder is not there.
    """
    if not live_file.parent.is_dir():
        raise InputError(f"no folder {live_file.parent} for the live file {live_file.name}")
    keeper = FileKeeper(follower, say, poll_s=poll_s)
    state = LiveState()
    while True:
        try:
            if not live_file.exists():
                write_live(live_file, state)
            keeper.keep(live_file, reread=False)
            state = read_live(live_file)
        except (InputError, OSError) as error:
            if once:
                raise
            say(f"not kept: {error}")
        if once:
            return state
        time.sleep(poll_s)


def shown_change(before: LiveState, after: LiveState) -> str:
    """What differs, in a line."""
    parts = []
    for name in LiveState.model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            parts.append(f"{name} {_shown(old)} -> {_shown(new)}")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, LivePredictor):
        return value.version or value.directory
    return "none" if value is None else str(value)


def read_policy_file(path: Path) -> dict[str, Any]:
    """``{"policy": NAME, "policy_params": {...}}`` from a JSON file; InputError if it is wrong."""
    document = read_object(path, "policy file")
    if not {"policy"} <= set(document) <= {"policy", "policy_params"}:
        raise InputError(
            f"policy file {path} must hold an object with policy and, if any, policy_params"
        )
    state = make_live(document, f"policy file {path}")
    return {"policy": state.policy, "policy_params": state.policy_params}
