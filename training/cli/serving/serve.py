"""Command ``serve``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.data.files import read_object
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.training import console
from lengthwise.training.cli.pairs import MOST_SEED
from lengthwise.training.cli.serving.operate import doctor, follow
from lengthwise.training.cli.serving.serve_inputs import (
    LMDEPLOY,
    NO_PREDICTOR,
    VLLM,
    check_lmdeploy,
    check_options,
    check_policy,
    check_start,
    emulated_device,
    engine_parts,
    find_predictor,
    read_admission,
    read_slo_table,
)
from lengthwise.training.cli.serving.serve_line import DEFAULT_PORT, ServeCommand
from lengthwise.training.registry.model_names import DEFAULT_PREDICTOR
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.scheduler.serving.live import LiveKeeper
    from lengthwise.scheduler.serving.settings import ServerSettings


def register(app: typer.Typer) -> None:
    """Add it to the app, and the commands beside a server."""
    passing_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("serve", cls=ServeCommand, context_settings=passing_on)(serve)
    app.command("follow")(follow)
    app.command("doctor")(doctor)


def serve(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="A model vLLM can load; 'tiny', built in; 'smollm2', if installed."),
    ],
    engine: Annotated[
        str,
        typer.Option(
            help="vllm | lmdeploy (an environment of its own: make lmdeploy). With lmdeploy "
            "--backend pytorch | turbomind; --device cpu, which 'tiny' has by itself."
        ),
    ] = VLLM,
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
        Path | None, typer.Option(help="JSON: class to its ttft_ms, tpot_ms, e2e_ms and weight.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Engine profile to start from: a name or a file.")
    ] = None,
    max_wait: Annotated[
        float, typer.Option(help="Seconds after which a request goes first, whatever the plan.")
    ] = MAX_WAIT_S,
    plan_budget_ms: Annotated[
        float, typer.Option(help="Longest search for one plan, in processor time.")
    ] = 20.0,
    reader_budget_ms: Annotated[
        float, typer.Option(min=0, help="Longest wait for a predictor's causal reader; 0: none.")
    ] = 2000.0,
    length_residual: Annotated[
        bool,
        typer.Option(help="Mend learned lengths by what answers tell of prompts' features."),
    ] = True,
    request_log: Annotated[
        Path | None, typer.Option(help="Directory for one row per finished request.")
    ] = None,
    request_log_max_mb: Annotated[
        float, typer.Option(help="The oldest files of the log go beyond this.")
    ] = 4096.0,
    request_log_max_age_days: Annotated[
        float | None, typer.Option(help="Files of the log older than this go.")
    ] = None,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help="Train on the request log as it grows, in a process of lowest priority, and "
            "promote what is no worse for the SLOs.",
        ),
    ] = False,
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
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the annealing.")] = 0,
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
    """Serve MODEL with vLLM or LMDeploy, ordered by length and SLO.

    The OpenAI API, with vllm_xargs or x-slo-* headers for objectives. Options not listed here
    go to vLLM as they are: --port 8001 --max-num-seqs 64 ...
    With --engine lmdeploy they go to LMDeploy: --server-port 8001 --max-batch-size 64 ...
    A predictor named by alias is followed: when the alias moves, the server takes the new version
    over without a restart, and one with the alias 'shadow' predicts along without being obeyed.
    SIGHUP reads the registry, --slo-table and --policy-file anew.
    """
    from lengthwise.training.packaged_model import packaged_model

    check_options(ctx)
    name = model
    if engine == VLLM:
        model, engine_args = packaged_model(name, ctx.args)
        check_start(model, engine_args)
    else:
        engine_args = list(ctx.args)
        check_lmdeploy(model, engine_args, Workspace.current())
    if instances > 1:
        from lengthwise.scheduler.ray_adapter.run_fleet import check_ray

        check_ray()
    from lengthwise.scheduler.serving.settings import make_settings
    from lengthwise.scheduler.vllm_adapter.server.vllm_foreground import serve_forever
    from lengthwise.training.registry.follow import (
        FileKeeper,
        Follower,
        followed_alias,
        read_policy_file,
    )

    device = emulated_device(emulate, step_log)
    workspace = Workspace.current()
    say = partial(console.stderr().print, markup=False, soft_wrap=True)
    resolved = find_predictor(predictor, workspace, say)
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
            "reader_budget_ms": reader_budget_ms,
            "length_residual": length_residual,
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
            "plan_parts": engine_parts(engine),
        }
        # a fit to emulated steps would only find the profile again
        | ({} if device is None else {"refit_steps": 0})
    )
    label = resolved.label if resolved else "no predictor"
    if request_log is not None:
        from lengthwise.training.bench.served import write_served

        try:
            write_served(request_log, name, settings.model_dump(mode="json"), engine_args)
        except OSError as error:
            say(f"{request_log} cannot be written to: {error}")
    say(f"{name} with {label}, policy {settings.policy}, lengths {settings.lengths}")
    alias = followed_alias(predictor)
    readers: list[Callable[[], dict[str, Any]]] = []
    if slo_table is not None:
        readers.append(lambda: {"slo_table": read_slo_table(slo_table)})
    if policy_file is not None:
        readers.append(lambda: read_policy_file(policy_file))
    with learning(request_log if learn else None, workspace, say) as look:
        follower = Follower(workspace, say, alias) if alias else None
        keeper = FileKeeper(follower, say, tuple(readers), poll_s, look)
        if instances > 1:
            code = serve_instances(model, settings, engine_args, instances, workspace, keeper)
        elif engine == LMDEPLOY:
            code = serve_at_pool(model, settings, engine_args, workspace, keeper)
        else:
            code = serve_forever(
                model,
                settings,
                engine_args,
                cache_dir=workspace.cache,
                keeper=keeper,
                emulate=device,
            )
    raise typer.Exit(code)


def serve_at_pool(
    model: str,
    settings: ServerSettings,
    lmdeploy_args: Sequence[str],
    workspace: Workspace,
    keeper: LiveKeeper,
) -> int:
    """Serve with LMDeploy, in the foreground; the exit code."""
    from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import environment_python
    from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_foreground import serve_lmdeploy
    from lengthwise.scheduler.serving.server.command_options import without_given
    from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model

    tiny = model == TINY_NAME
    if tiny:
        model = str(build_tiny_model(workspace.cache / TINY_NAME))
        name = without_given((("--model-name", TINY_NAME),), lmdeploy_args)
        lmdeploy_args = [*name, *lmdeploy_args]
    return serve_lmdeploy(
        environment_python(workspace.cache),
        model,
        settings,
        lmdeploy_args,
        cache_dir=workspace.cache,
        keeper=keeper,
        on_cpu=tiny,
    )


@contextmanager
def learning(
    log: Path | None, workspace: Workspace, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """What is to be called now and then for `--learn`; nothing without a log to learn from."""
    if log is None:
        yield lambda: None
        return
    from lengthwise.training.train.on_its_own import SelfTraining, starter

    output = workspace.cache / "learning.log"
    say(f"learning from {log}; what the trainings print is in {output}")
    with closing(SelfTraining(log.absolute(), say, starter(output))) as training:
        yield training.look


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
    from lengthwise.scheduler.serving.live import live_state, write_live
    from lengthwise.scheduler.serving.server.preflight import address_of
    from lengthwise.scheduler.serving.server.run_files import make_run_files

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
