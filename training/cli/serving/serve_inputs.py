"""What the options of ``lengthwise serve`` name, looked up and checked before anything loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object
from lengthwise.training.cli.pairs import NO_PREDICTOR, refuse
from lengthwise.training.registry.model_names import CHAMPION, DEFAULT_PREDICTOR
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions
    from lengthwise.training.registry.models import ResolvedPredictor

VLLM, LMDEPLOY = ENGINES = ("vllm", "lmdeploy")
SERVED_LENGTHS = ("learned", "class", "none")


def check_options(ctx: Any) -> None:
    """InputError for options of `serve` that contradict one another."""
    given = ctx.params
    if given["request_log"] is None:
        names = ("request_log_max_mb", "request_log_max_age_days")
        refuse(ctx, names, "there is no request log without --request-log DIR")
    if given["learn"]:
        check_learning(given["request_log"], given["predictor"])
    if given["policy_file"] is not None:
        refuse(ctx, ("policy",), f"and --policy-file {given['policy_file']}: give one of them")
    if not given["fair_tenants"]:
        refuse(ctx, ("tenant_weights",), "weighs fair shares, got --no-fair-tenants with it")
    if given["instances"] > 1:
        refuse(ctx, ("emulate",), "serves one instance, got --instances with it")
    if given["engine"] not in ENGINES:
        raise InputError(f"--engine must be one of {', '.join(ENGINES)}, got {given['engine']!r}")
    if given["engine"] == LMDEPLOY:
        refuse(ctx, ("emulate", "step_log"), "is vLLM's device, got --engine lmdeploy with it")
        refuse(ctx, ("instances",), "are vLLM's, got --engine lmdeploy with them")
    lengths = given["lengths"]
    if lengths is not None and lengths not in SERVED_LENGTHS:
        raise InputError(f"--lengths must be one of {', '.join(SERVED_LENGTHS)}, got {lengths!r}")
    if given["predictor"] == NO_PREDICTOR and lengths in ("learned", "class"):
        raise InputError(
            f"--lengths {lengths} are a predictor's, got --predictor {NO_PREDICTOR}: name one, or "
            "take lengths none"
        )


def check_learning(request_log: Path | None, predictor: str) -> None:
    """InputError where `--learn` has nothing to learn from, or nobody would take what it makes."""
    from lengthwise.training.registry.follow import followed_alias

    if request_log is None:
        raise InputError("--learn learns from the request log: give --request-log DIR")
    if predictor == NO_PREDICTOR or followed_alias(predictor) != CHAMPION:
        raise InputError(
            f"--learn promotes new versions to {DEFAULT_PREDICTOR}, which this server does not "
            f"follow: got --predictor {predictor}"
        )


def check_start(model: str, vllm_args: Sequence[str]) -> None:
    """InputError for an address that is taken or a model that is none, before anything loads."""
    from lengthwise.scheduler.serving.server.preflight import (
        address_of,
        check_model,
        hold_address,
    )
    from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME

    if model != TINY_NAME:
        check_model(model)
    address = address_of(vllm_args)
    if address is not None:
        hold_address(address).close()


def check_lmdeploy(model: str, arguments: Sequence[str], workspace: Workspace) -> None:
    """InputError for an address that is taken, a model that is none, or no such environment."""
    from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import environment_python
    from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_foreground import lmdeploy_address
    from lengthwise.scheduler.serving.server.preflight import check_model, hold_address
    from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME

    environment_python(workspace.cache)
    if model != TINY_NAME:
        check_model(model)
    hold_address(lmdeploy_address(arguments)).close()


def engine_parts(engine: str) -> tuple[str, ...] | None:
    """The parts of a plan that the engine can carry out; None: all."""
    if engine == VLLM:
        return None
    from lengthwise.scheduler.lmdeploy_adapter.pool_order import PARTS

    return PARTS


def emulated_device(profile: str | None, step_log: Path | None) -> EmulateOptions | None:
    """What `--emulate` asks for, checked.

    Raises:
        InputError: a profile that cannot be emulated, a step log without one.
    """
    from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions, emulable_profile

    if profile is None:
        if step_log is not None:
            raise InputError(f"--step-log {step_log} needs --emulate PROFILE")
        return None
    emulable_profile(profile)
    return EmulateOptions(profile, step_log=str(step_log.absolute()) if step_log else None)


def find_predictor(
    name: str, workspace: Workspace, say: Callable[[str], None]
) -> ResolvedPredictor | None:
    """The predictor to serve with, loaded once so that a broken one stops the start.

    A workspace without any version begins with the one that comes with the package.
    """
    if name == NO_PREDICTOR:
        return None
    from lengthwise.predictor.model import LengthPredictor
    from lengthwise.training.registry.models import resolve_predictor
    from lengthwise.training.registry.shipped import register_shipped
    from lengthwise.training.registry.store import RegistryError

    try:
        resolved = resolve_predictor(name, workspace=workspace)
    except RegistryError as error:
        first = None
        with suppress(RegistryError):
            first = register_shipped(workspace) if name == DEFAULT_PREDICTOR else None
        if first is None:
            raise RegistryError(f"{error} (or serve with --predictor {NO_PREDICTOR})") from error
        say(
            f"no version of a predictor yet: {first.model_uri} is the one that comes with the "
            "package, learned from other models' answers; this one's mend it"
        )
        resolved = resolve_predictor(name, workspace=workspace)
    LengthPredictor.load(resolved.directory)
    return resolved


def check_policy(name: str) -> str:
    """The policy's name; InputError listing those there are."""
    from lengthwise.scheduler.policies.make import POLICIES

    if name not in POLICIES:
        raise InputError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}")
    return name


def read_slo_table(path: Path) -> dict[str, Any]:
    """The SLO table of a JSON file; InputError if it is missing, no JSON, or breaks a rule."""
    from lengthwise.data.slo import SloTable

    table = read_object(path, "SLO table")
    SloTable.from_dict(table)
    return table


def read_admission(mode_or_file: str) -> dict[str, Any]:
    """The settings of admission control: a mode alone, or a JSON file's object."""
    if mode_or_file in ("off", "shed", "downgrade"):
        return {"mode": mode_or_file}
    if not Path(mode_or_file).is_file():
        raise InputError(
            f"--admission must be off, shed, downgrade or a JSON file, got {mode_or_file!r}"
        )
    return read_object(Path(mode_or_file), "admission settings")
