"""Commands about the predictor: ``train``, ``register``, ``predict``, ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lengthwise.data.errors import InputError
from lengthwise.training import console
from lengthwise.training.cli.pairs import MOST_SEED, refuse
from lengthwise.training.registry.model_names import check_alias
from lengthwise.training.workspace import Workspace

ESTIMATORS = "lightgbm, bert, stack (both), lightgbm_hazard, lightgbm_student"
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on the last line.")]
MODEL_HELP = "models:/output-length@champion, models:/output-length/N, models:/m-... or a directory"
REGISTER_HELP = "What train printed (models:/m-...), runs:/RUN_ID, or a predictor's directory."


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("train")(train)
    app.command("register")(register_model)
    app.command("predict")(predict)
    app.command("compare")(compare)


def train(
    ctx: typer.Context,
    pack: Annotated[str | None, typer.Option(help="A pack under $LENGTHWISE_DATA.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="Prompts with answers: JSON, JSONL, CSV, Parquet."),
    ] = None,
    from_log: Annotated[
        Path | None, typer.Option(help="A server's request log, a directory.")
    ] = None,
    estimator: Annotated[str, typer.Option(help=ESTIMATORS)] = "lightgbm",
    encoder: Annotated[
        str | None, typer.Option(help="For bert and stack: a Hugging Face encoder's name or path.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="For bert and stack: passes over the rows.")
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(help="Add columns of a frozen encoder: packaged-minilm, or any name."),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(
            help="Add states of a causal model where they pay: smollm2, a folder, or a hub name."
        ),
    ] = None,
    openings: Annotated[
        bool,
        typer.Option(
            "--openings", help="Estimate answers anew once they have begun, by their first words."
        ),
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read a log larger than memory in pieces.")
    ] = False,
    decision: Annotated[
        bool,
        typer.Option(help="Also simulate the SLO attainment these lengths bring."),
    ] = True,
    register: Annotated[
        bool, typer.Option("--register/--no-register", help="Make a version in the registry.")
    ] = False,
    alias: Annotated[
        str | None, typer.Option(help="Alias of the version; implies --register.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of the split and the training.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many rows.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train, evaluate and log a length predictor.

    Metrics of the test split stand beside those of the baselines; MLflow keeps all of it.
    Without a source: the pack gpt35 if it is there, else the built-in synthetic corpus.
    """
    given = [str(s) for s in (pack, input_file, from_log) if s is not None]
    if len(given) > 1:
        raise InputError(f"give one of --pack, --input, --from-log; got {len(given)}")
    settings = {k: v for k, v in {"encoder": encoder, "epochs": epochs}.items() if v is not None}
    if settings:
        from lengthwise.predictor.artifact import READERS

        if estimator not in READERS:
            names = " or ".join(READERS)
            raise InputError(f"--{next(iter(settings))} goes with {names}, not with {estimator}")
    if stream and from_log is None:
        raise InputError("--stream reads a request log: give --from-log DIR")
    if stream:
        refuse(ctx, ("reader", "embedding"), "needs the prompts, and --stream reads features only")
        refuse(ctx, ("estimator",), "--stream trains lightgbm_student")
        refuse(ctx, ("limit",), "--stream reads all of a log")
    if alias is not None and not register:
        refuse(ctx, ("register",), f"the alias {alias} is a version's")
    if alias is not None:
        check_alias(alias)
    if openings and (estimator != "lightgbm" or reader is not None or from_log is not None):
        raise InputError(
            "--openings goes with lightgbm and answers' texts, with no --reader or log"
        )
    from lengthwise.training.train.pipeline import TrainConfig, print_result
    from lengthwise.training.train.pipeline import train as run

    config = TrainConfig(
        source=given[0] if given else None,
        estimator=estimator,
        reader=settings,
        embedding=embedding,
        causal_reader=reader if reader is None or not Path(reader).is_dir() else _absolute(reader),
        openings=openings,
        stream=stream,
        decision=decision,
        seed=seed,
        limit=limit,
        register=register or alias is not None,
        alias=alias,
    )
    with console.progress(quiet=as_json) as steps:
        result = run(config, workspace=Workspace.current(), steps=steps)
    if as_json:
        console.print_json(result.to_json())
    else:
        print_result(result)
        if result.version is None:
            hint = f"lengthwise register {result.model_uri} makes a version of it"
            console.stderr().print(hint, markup=False, soft_wrap=True)


def _absolute(folder: str) -> str:
    """A folder as any process finds it."""
    return str(Path(folder).absolute())


def register_model(
    model: Annotated[str, typer.Argument(metavar="URI|DIR", help=REGISTER_HELP)],
    alias: Annotated[
        str | None, typer.Option(help="Default: champion for the first version, then challenger.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version of output-length.

    From the URI of a logged model or from a predictor directory; a model that has a version
    keeps it, and only the alias moves.
    """
    from lengthwise.training.registry import models as registry

    version = registry.register(model, alias=alias, workspace=Workspace.current())
    if as_json:
        console.print_json(
            {
                "model_uri": version.model_uri,
                "version": version.version,
                "aliases": list(version.aliases),
                "run_id": version.run_id,
                "model_id": version.model_id,
            }
        )
    else:
        names = ", ".join(version.aliases) or "none"
        print(f"{version.model_uri} (alias: {names}; run {version.run_id})")


def predict(
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    input_file: Annotated[
        str, typer.Option("--input", help="JSONL: 'prompt' or 'messages'; - is stdin.")
    ],
    output_file: Annotated[str, typer.Option("--output", help="JSONL to write; - is stdout.")],
) -> None:
    """Add predicted lengths to a JSONL file.

    Rows keep their order and fields and gain predicted_tokens and quantiles.
    """
    from lengthwise.predictor.model import LengthPredictor
    from lengthwise.training.registry.models import resolve_predictor
    from lengthwise.training.train.predict import STANDARD_STREAM, predict_file

    resolved = resolve_predictor(model, workspace=Workspace.current())
    predictor = LengthPredictor.load(resolved.directory)
    with console.progress(quiet=output_file == STANDARD_STREAM) as steps:
        rows = predict_file(predictor, input_file, output_file, steps=steps)
    if output_file != STANDARD_STREAM:
        console.stderr().print(f"{rows} rows with {resolved.label} -> {output_file}")


def compare(as_json: JsonOption = False) -> None:
    """Versions, their metrics, their SLO attainment."""
    from lengthwise.training.cli.versions import as_json as document
    from lengthwise.training.cli.versions import print_versions
    from lengthwise.training.registry.attainment import versions_table

    rows = versions_table(workspace=Workspace.current())
    if as_json:
        console.print_json(document(rows))
    else:
        print_versions(rows)
