"""Commands about the server: ``serve``, ``follow`` and ``doctor``."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object
from lengthwise.training import console
from lengthwise.training.registry.models import (
    DEFAULT_PREDICTOR,
    ResolvedPredictor,
    resolve_predictor,
)
from lengthwise.training.registry.store import RegistryError
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions
    from lengthwise.scheduler.vllm_adapter.server.launch import LiveKeeper
    from lengthwise.scheduler.vllm_adapter.settings import ServerSettings

NO_PREDICTOR = "none"
DEFAULT_PORT = 8000


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    passing_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("serve", cls=ServeCommand, context_settings=passing_on)(serve)
    app.command("follow")(follow)
    app.command("doctor")(doctor)


class ServeCommand(TyperCommand):
    """Keeps to its own options; every other word is vLLM's and stays as it is in ``ctx.args``.

    click would take vLLM's ``-dph`` for ``-d -p -h`` and answer with help.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse our part of the line."""
        arity = {"-h": 0, "--help": 0}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "option":
                flag = getattr(parameter, "is_flag", False)
                names = [*parameter.opts, *parameter.secondary_opts]
                arity |= dict.fromkeys(names, 0 if flag else 1)
        ours, theirs = split_arguments(args, arity)
        super().parse_args(ctx, ours)
        ctx.args = theirs
        return theirs


def split_arguments(args: Sequence[str], arity: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Our words of a command line, and vLLM's, each in their order.

    Ours are the options of ``arity`` (option to the number of its values) and the first word that
    is no option, the model. InputError when an option of vLLM's comes before that.
    """
    ours: list[str] = []
    theirs: list[str] = []
    has_model = False
    words = iter(args)
    for word in words:
        name, equals, _ = word.partition("=")
        if name in arity:
            ours.append(word)
            values = 0 if equals else arity[name]
            ours += itertools.islice(words, values)
        elif has_model:
            theirs.append(word)
        elif word.startswith("-") and word != "--":
            theirs.append(word)
            break
        elif word != "--":
            ours.append(word)
            has_model = True
    if not has_model and theirs and not {"-h", "--help"} & {*ours, *words}:
        raise InputError(f"MODEL comes before vLLM's options, got {theirs[0]!r}")
    return ours, theirs


def serve(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model vLLM can load, or 'tiny', built in.")],
    predictor: Annotated[
        str, typer.Option(help=f"Model URI or directory; '{NO_PREDICTOR}' serves without.")
    ] = DEFAULT_PREDICTOR,
    policy: Annotated[
        str, typer.Option(help="Admission order, e.g. sa, feasible-edf, fcfs.")
    ] = "sa",
    policy_file: Annotated[
        Path | None, typer.Option(help="JSON: policy and policy_params, instead of --policy.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="learned | class | none; learned if there is a predictor.")
    ] = None,
    slo_table: Annotated[
        Path | None, typer.Option(help="JSON: class to its default slo_*_ms and weight.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Engine profile to start from: a name or a file.")
    ] = None,
    max_wait: Annotated[
        float, typer.Option(help="Seconds after which a request goes first, whatever the plan.")
    ] = 120.0,
    plan_budget_ms: Annotated[float, typer.Option(help="Longest search for one plan.")] = 20.0,
    request_log: Annotated[
        Path | None, typer.Option(help="Directory for one row per finished request.")
    ] = None,
    request_log_max_mb: Annotated[
        float, typer.Option(help="The oldest files of the log go beyond this.")
    ] = 4096.0,
    request_log_max_age_days: Annotated[
        float | None, typer.Option(help="Files of the log older than this go.")
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Keep the prompts' text in the request log.")
    ] = False,
    allow_configure: Annotated[
        bool,
        typer.Option("--allow-configure", help="Let POST /lengthwise/configure change policy."),
    ] = False,
    admission: Annotated[
        str,
        typer.Option(
            help="What becomes of requests that cannot meet their SLO: off | shed (503 with "
            "Retry-After) | downgrade (best effort); or a JSON file with mode, threshold, "
            "max_share, per_class, window, timeout_ms."
        ),
    ] = "off",
    fair_tenants: Annotated[
        bool,
        typer.Option(help="Share fairly between tenants (x-tenant header or xargs tenant)."),
    ] = True,
    tenant_weights: Annotated[
        Path | None, typer.Option(help="JSON: tenant to its weight; 1 for the others.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the annealing.")] = 0,
    poll_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds between looks at the registry's aliases.")
    ] = 30.0,
    emulate: Annotated[
        str | None,
        typer.Option(
            help="Engine profile, a name or a file: serve on a device that takes its time and "
            "computes nothing. Answers are filler words, as long as max_tokens says."
        ),
    ] = None,
    step_log: Annotated[
        Path | None, typer.Option(help="With --emulate: a file for a line a step.")
    ] = None,
    instances: Annotated[
        int,
        typer.Option(
            min=1,
            help="Engines under Ray Serve, behind one address. With vLLM's own "
            "--data-parallel-size instead, engines of one server.",
        ),
    ] = 1,
    router: Annotated[
        str,
        typer.Option(
            help="Who chooses among several engines: gain, gain-late, least-work, "
            "least-outstanding, power-of-two, round-robin ... or none, the engine's own way."
        ),
    ] = "gain",
) -> None:
    """Serve MODEL with vLLM, ordered by length and SLO.

    The OpenAI API, with vllm_xargs or x-slo-* headers for objectives. Options not listed here
    go to vLLM as they are: --port 8001 --max-num-seqs 64 ...
    A predictor named by alias is followed: when the alias moves, the server takes the new version
    over without a restart, and one with the alias 'shadow' predicts along without being obeyed.
    SIGHUP reads the registry, --slo-table and --policy-file anew.
    """
    check_start(model, ctx.args)
    if instances > 1:
        from lengthwise.scheduler.ray_adapter.run_fleet import check_ray

        check_ray()
    from lengthwise.scheduler.vllm_adapter.server.launch import serve_forever
    from lengthwise.scheduler.vllm_adapter.settings import make_settings
    from lengthwise.training.registry.follow import (
        FileKeeper,
        Follower,
        followed_alias,
        read_policy_file,
    )

    device = emulated_device(emulate, step_log)
    workspace = Workspace.current()
    resolved = find_predictor(predictor, workspace)
    ordering: dict[str, Any] = {"policy": check_policy(policy)}
    if policy_file is not None:
        ordering = read_policy_file(policy_file)
    settings = make_settings(
        ordering
        | {
            "predictor_dir": str(resolved.directory) if resolved else None,
            "predictor_version": resolved.label if resolved else None,
            "lengths": lengths or ("learned" if resolved else "none"),
            "plan_budget_ms": plan_budget_ms,
            "max_wait_s": max_wait,
            "slo_table": read_slo_table(slo_table) if slo_table else {},
            "profile": profile or emulate,
            "request_log": str(request_log.absolute()) if request_log else None,
            "request_log_max_mb": request_log_max_mb,
            "request_log_max_age_days": request_log_max_age_days,
            "log_prompts": log_prompts,
            "allow_configure": allow_configure,
            "admission": read_admission(admission),
            "fair_tenants": fair_tenants,
            "tenant_weights": read_object(tenant_weights, "tenant weights")
            if tenant_weights
            else {},
            "seed": seed,
            "router": router,
        }
        # a fit to emulated steps would only find the profile again
        | ({} if device is None else {"refit_steps": 0})
    )
    label = resolved.label if resolved else "no predictor"
    say = partial(console.stderr().print, markup=False, soft_wrap=True)
    if request_log is not None:
        from lengthwise.training.bench.served import write_served

        try:
            write_served(request_log, model, settings.model_dump(mode="json"), ctx.args)
        except OSError as error:
            say(f"{request_log} cannot be written to: {error}")
    say(f"{model} with {label}, policy {settings.policy}, lengths {settings.lengths}")
    alias = followed_alias(predictor)
    readers: list[Callable[[], dict[str, Any]]] = []
    if slo_table is not None:
        readers.append(lambda: {"slo_table": read_slo_table(slo_table)})
    if policy_file is not None:
        readers.append(lambda: read_policy_file(policy_file))
    keeper = FileKeeper(
        Follower(workspace, say, alias) if alias else None, say, tuple(readers), poll_s
    )
    if instances > 1:
        if device is not None:
            raise InputError("--emulate serves one instance, got --instances with it")
        raise typer.Exit(serve_instances(model, settings, ctx.args, instances, workspace, keeper))
    raise typer.Exit(
        serve_forever(
            model,
            settings,
            ctx.args,
            cache_dir=workspace.cache,
            keeper=keeper,
            emulate=device,
        )
    )


def serve_instances(
    model: str,
    settings: ServerSettings,
    vllm_args: Sequence[str],
    instances: int,
    workspace: Workspace,
    keeper: LiveKeeper,
) -> int:
    """Serve by several instances under Ray Serve, in the foreground; the exit code."""
    from lengthwise.scheduler.ray_adapter.run_fleet import laptop_options, run_fleet
    from lengthwise.scheduler.vllm_adapter.live import live_state, write_live
    from lengthwise.scheduler.vllm_adapter.server.preflight import address_of
    from lengthwise.scheduler.vllm_adapter.server.run_files import make_run_files

    files = make_run_files(workspace.cache / "run", Path(tempfile.gettempdir()))
    live_file = files.path("live.json")
    write_live(live_file, live_state(settings))
    try:
        settings = settings.model_copy(update={"live_file": str(live_file)})
        options = laptop_options(
            model, settings, vllm_args, instances=instances, cache_dir=workspace.cache
        )
        address = address_of(vllm_args)
        host, port = (
            ("0.0.0.0", DEFAULT_PORT)
            if address is None
            else (address.host or "0.0.0.0", address.port)
        )
        return run_fleet(options, host=host, port=port, keeper=keeper, live_file=live_file)
    finally:
        files.remove()


def check_start(model: str, vllm_args: Sequence[str]) -> None:
    """InputError for an address that is taken or a model that is none, before anything loads."""
    from lengthwise.scheduler.vllm_adapter.server.preflight import (
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


def follow(
    live: Annotated[Path, typer.Option(help="The live file of a running server.")],
    poll_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds between looks at the registry.")
    ] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Keep a server's live file in step with the registry.

    For a server that `lengthwise serve` did not start: its settings name the same live_file. The
    aliases champion and shadow of output-length become its predictor and its shadow.
    """
    from lengthwise.training.registry.follow import Follower
    from lengthwise.training.registry.follow import follow as keep_following

    say = partial(console.stderr().print, markup=False, soft_wrap=True)
    follower = Follower(Workspace.current(), say)
    keep_following(live, follower, poll_s=poll_s, once=once, say=say)


def find_predictor(name: str, workspace: Workspace) -> ResolvedPredictor | None:
    """The predictor to serve with, loaded once so that a broken one stops the start."""
    if name == NO_PREDICTOR:
        return None
    from lengthwise.predictor.model import LengthPredictor

    try:
        resolved = resolve_predictor(name, workspace=workspace)
    except RegistryError as error:
        raise RegistryError(f"{error} (or serve with --predictor {NO_PREDICTOR})") from error
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


def doctor(
    model: Annotated[str, typer.Option(help="The model to be served.")] = "tiny",
    port: Annotated[int, typer.Option(min=1, max=65535)] = DEFAULT_PORT,
    request_log: Annotated[
        Path | None, typer.Option(help="The request log's directory, if there is to be one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Check what training and serving need.

    Installation, vLLM and its hooks, caches, tracking store, champion, model, tokenizer, data,
    the folders that a server writes to, port; with what to do about each.
    """
    from dataclasses import asdict

    from lengthwise.training.doctor.checks import failed, run_checks

    checks = run_checks(workspace=Workspace.current(), model=model, port=port, log_dir=request_log)
    if as_json:
        console.print_json({"ok": not failed(checks), "checks": [asdict(c) for c in checks]})
    else:
        console.print_checks([(c.status, c.name, c.detail, c.advice) for c in checks])
    raise typer.Exit(1 if failed(checks) else 0)
