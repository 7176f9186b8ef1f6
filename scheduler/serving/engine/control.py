"""Looking into and switching a running engine: the utility calls behind ``/lengthwise/``.

Arguments and results are plain values, as msgpack needs.
"""

from __future__ import annotations

import time
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.serving.engine.core import Core
from lengthwise.scheduler.serving.engine.core_status import core_status
from lengthwise.scheduler.serving.engine.engine_admission import EngineAdmission
from lengthwise.scheduler.serving.engine.plans.prepared_policy import prepare_policy
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.priors import load_priors
from lengthwise.scheduler.serving.wire.admission_question import Answer
from lengthwise.scheduler.serving.wire.configure_request import EngineRequest, parse_request
from lengthwise.scheduler.serving.wire.utility_calls import plain


class Control:
    """Answers for one engine; also on admission, where the settings ask for that."""

    def __init__(self, core: Core) -> None:
        self.core = core
        off = core.settings.admission.mode == "off"
        self.admission = None if off else EngineAdmission(core)

    def status(self) -> dict[str, Any]:
        """What the engine process knows, as plain values."""
        self.core.conclude_overdue(time.monotonic())
        admission = {"mode": "off"} if self.admission is None else self.admission.status()
        return dict(plain(core_status(self.core, time.monotonic()) | {"admission": admission}))

    def admit(self, question: dict[str, Any], running: Running) -> dict[str, Any]:
        """The verdict on a request that the API process holds back."""
        if self.admission is None:
            return Answer().to_wire()
        now_s, unix_s = time.monotonic(), time.time()
        answer = self.admission.answer(question, running, now_s, unix_s)
        return dict(plain(answer.to_wire()))

    def acted(self, said: list[Any]) -> None:
        """The API process acted on a verdict."""
        if self.admission is not None:
            self.admission.acted(said, time.monotonic(), time.time())

    def configure(self, body: dict[str, Any]) -> dict[str, Any]:
        """Apply a request whole or not at all; ``{"error": ...}`` says what was wrong."""
        core = self.core
        planner, intake, settings = core.planner, core.intake, core.settings
        priors = slos = policy = None
        try:
            request = parse_request(EngineRequest, body)
            if request.predictor_dir is not None:
                priors = load_priors(request.predictor_dir)
                if priors.levels.tolist() != core.table.levels.tolist():
                    raise InputError(
                        f"predictor {request.predictor_dir!r} has other quantile levels than the "
                        "one this server started with"
                    )
            if request.slo_table is not None:
                slos = SloTable.from_dict(request.slo_table)
            if request.policy is not None:
                policy = prepare_policy(settings, request.policy, request.policy_params)
            if request.log_steps is not None:
                if request.log_steps and settings.step_log is None:
                    raise InputError("log_steps: this server was started without a step_log")
                core.timer.set_log(settings.step_log if request.log_steps else None)
        except Exception as error:  # what is asked for may be odd in any way; serving goes on
            return {"error": str(error) if isinstance(error, ValueError | OSError) else repr(error)}
        if priors is not None and request.predictor_dir is not None:
            intake.switch_predictor(priors, request.predictor_dir, request.predictor_version)
        if slos is not None:
            intake.switch_table(slos)
        if policy is not None:
            planner.use(policy)
        if request.lengths is not None:
            intake.lengths = request.lengths
        if request.reset_stats:
            core.reset_stats()
        return {
            "policy": planner.policy.name,
            "policy_params": dict(planner.policy_params),
            "lengths": intake.lengths,
        }
