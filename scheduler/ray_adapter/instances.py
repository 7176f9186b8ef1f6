"""The instances of a fleet as the middleware sees them: an engine's client that answers for all."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from lengthwise.scheduler.ray_adapter.forwarded import Forwarded, Started
from lengthwise.scheduler.serving.api.engines import ANSWER_S
from lengthwise.scheduler.serving.wire.utility_calls import CONFIGURE_METHOD

logger = logging.getLogger("ray.serve")


class Instances:
    """What is asked is asked of each; ``handle`` is Serve's to them."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._configured: dict[str, Any] = {}
        self._told: set[str] = set()

    async def ask_all(self, method: str, *args: Any, timeout_s: float) -> dict[str, Any]:
        """Every instance's answer to a utility call, by its name."""
        answers = await self._of_all("ask_engine", method, *args, timeout_s=timeout_s)
        if method == CONFIGURE_METHOD:
            self._note(args[0], answers)
        return answers

    async def tell_newcomers(self, names: Collection[str]) -> None:
        """Configure instances that have joined since as the others were, which starts them anew
        with the server's first settings."""
        if self._configured and not self._told.issuperset(names):
            said = dict(self._configured)
            answers = await self.ask_all(CONFIGURE_METHOD, said, timeout_s=ANSWER_S)
            logger.info("%d instances configured with %s", len(answers), sorted(said))

    def _note(self, body: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
        """Remember what was put in place, and where."""
        done = {
            name for name, answer in answers.items()
            if isinstance(answer, Mapping) and "error" not in answer
        }  # fmt: skip
        if done and len(done) == len(answers):
            passing = ("reset_stats", "log_steps")
            if body.get("policy") is not None:  # another policy's parameters are not its
                self._configured.pop("policy_params", None)
            self._configured |= {
                name: value for name, value in body.items()
                if value is not None and name not in passing
            }  # fmt: skip
            self._told = done

    async def answers_of_all(self, request: Forwarded) -> dict[str, tuple[Started, bytes]]:
        """Every instance's whole answer to a request, by its name."""
        found = await self._of_all("answer", request, timeout_s=ANSWER_S)
        return {name: said for name, said in found.items() if not isinstance(said, Exception)}

    async def _of_all(self, method: str, *args: Any, timeout_s: float) -> dict[str, Any]:
        response = self._handle.broadcast(method, *args)
        try:
            said = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        except Exception as error:
            return {"all": error}
        found: dict[str, Any] = {}
        for place, one in enumerate(said):
            if isinstance(one, Exception):
                found[f"unknown-{place}"] = one
            else:
                name, *rest = one
                found[name] = rest[0] if len(rest) == 1 else tuple(rest)
        return found


class EngineClient:
    """What the middleware looks for behind an application."""

    def __init__(self, instances: Instances) -> None:
        self.engine_core = instances

    def generate(self, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        """No sequence is started in the front."""
        raise RuntimeError("the front generates nothing")
