"""The bodies that switch a running engine: what an operator may say, and what the API process."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from lengthwise.data.errors import InputError, shown
from lengthwise.scheduler.policies.make import check_policy
from lengthwise.scheduler.serving.settings import Lengths, first_fault


class ConfigureRequest(BaseModel):
    """Body of ``POST /lengthwise/configure``; what is absent stays as it is.

    ``policy_params`` are those of ``policies.policy_params``, None the settings' own; they go with
    a policy. ``log_steps`` writes steps to the file of the server's own setting ``step_log``, or
    stops it.
    """

    model_config = ConfigDict(extra="forbid")

    policy: Annotated[str, Field(pattern="")] | None = None  # valid UTF-8, in which it is sent on
    policy_params: dict[str, Any] | None = None
    lengths: Lengths | None = None
    log_steps: StrictBool | None = None
    reset_stats: StrictBool = False

    @model_validator(mode="after")
    def _fits(self) -> ConfigureRequest:
        if self.policy_params is not None:
            check_policy(self.policy, self.policy_params)
        return self


class EngineRequest(ConfigureRequest):
    """What the API process may tell the engine: no client can name these paths and tables.

    ``predictor_dir`` (with its label ``predictor_version``) is another predictor, of
    the same levels.
    """

    predictor_dir: str | None = None
    predictor_version: str | None = None
    slo_table: dict[str, dict[str, float]] | None = None


_Request = TypeVar("_Request", bound=ConfigureRequest)


def parse_request(kind: type[_Request], body: Any) -> _Request:
    """A checked request of this kind; InputError names the key and the rule."""
    if not isinstance(body, dict):
        raise InputError(f"the body must be a JSON object, got {shown(body)}")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise InputError(first_fault(error)) from error
