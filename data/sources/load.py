"""One name for every source of prompts: packs, the built-in corpus, fetched sets, files."""

from __future__ import annotations

from pathlib import Path

from lengthwise.data.errors import InputError
from lengthwise.data.lines import Watch
from lengthwise.data.locations import DATA_VARIABLE, data_root, downloads_root, pack_path
from lengthwise.data.sources.catalogue import CATALOGUE
from lengthwise.data.sources.packs import read_pack
from lengthwise.data.table import PromptTable, sample_rows, validate
from lengthwise.data.tokens import DEFAULT_TOKENIZER, count_response_tokens, count_tokens

SYNTHETIC = "synthetic"
PREFERRED_PACK = "gpt35"


def available_packs() -> list[str]:
    """Names of the packs under $LENGTHWISE_DATA/packs, sorted; empty when there is none."""
    root = data_root()
    return (
        sorted(p.name.removesuffix(".jsonl.gz") for p in root.glob("packs/*.jsonl.gz"))
        if root
        else []
    )


def default_source() -> str:
    """The pack `gpt35` when it is there, the built-in synthetic corpus otherwise."""
    return PREFERRED_PACK if pack_path(PREFERRED_PACK) else SYNTHETIC


def load_table(
    spec: str,
    limit: int | None = None,
    *,
    tokenizer: str | None = None,
    watch: Watch | None = None,
) -> PromptTable:
    """The prompt table of a pack name, "synthetic", a fetched set's name, or a file path.

    Files: anything `prompt_files.read_file` takes; a folder is read as the server's request log,
    from its newest row back. `limit` keeps that many rows, drawn evenly and always the same (of a
    log the newest); without it a file or log gives as many as one training holds
    (`sample.MOST_ROWS`, `sample.MOST_CHARACTERS`), and `attrs` says what was left out.
    `tokenizer`: count prompts and answers anew with the served model's own tokenizer. `watch` is
    called with the bytes read. Raises InputError naming what exists when nothing fits.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    table = sample_rows(_load(spec, limit, tokenizer or DEFAULT_TOKENIZER, watch), limit)
    if tokenizer is None or table.attrs["tokenizer"] == tokenizer:
        return table
    return recounted(table, tokenizer)


def recounted(table: PromptTable, tokenizer: str) -> PromptTable:
    """The table with token counts of another tokenizer; InputError where a text is missing."""
    for name in ("prompt", "response"):
        if table[name].isna().any():
            label = table.attrs["source_label"]
            raise InputError(f"{label} cannot be counted with {tokenizer!r}: it has no {name} text")
    prompts, responses = list(table["prompt"]), list(table["response"])
    counted = table.assign(
        prompt_tokens=count_tokens(prompts, tokenizer, progress=True).clip(min=1),
        output_tokens=count_response_tokens(responses, tokenizer, progress=True),
    )
    counted.attrs = {**table.attrs, "tokenizer": tokenizer}
    return validate(counted)


def _load(spec: str, limit: int | None, tokenizer: str, watch: Watch | None) -> PromptTable:
    if spec == SYNTHETIC:
        from lengthwise.data.sources.synthetic.corpus import synthetic_table

        return synthetic_table()
    if pack := pack_path(spec):
        return read_pack(pack)
    if spec in CATALOGUE:
        return _load_fetched(spec, limit, tokenizer, watch)
    path = Path(spec)
    if path.is_dir():
        from lengthwise.data.request_log import newest_table
        from lengthwise.data.sources.sample import MOST_CHARACTERS, MOST_ROWS

        most = (limit, None) if limit else (MOST_ROWS, MOST_CHARACTERS)
        return newest_table(path, *most, source_label=f"log:{path.name}", watch=watch)
    if path.exists():
        from lengthwise.data.sources.prompt_files import read_file

        return read_file(path, limit=limit, tokenizer=tokenizer, watch=watch)
    packs = ", ".join(available_packs()) or f"none, ${DATA_VARIABLE} is unset or holds no packs/"
    raise InputError(
        f"no data source {spec!r}: not a file, not 'synthetic', not a pack ({packs}), "
        f"not a public set ({', '.join(CATALOGUE)})"
    )


def _load_fetched(name: str, limit: int | None, tokenizer: str, watch: Watch | None) -> PromptTable:
    from lengthwise.data.sources.fetch import fetched_file
    from lengthwise.data.sources.prompt_files import read_file

    entry = CATALOGUE[name]
    if entry.kind != "prompts":
        raise InputError(f"{name} is a trace of arrivals and lengths, without prompts to train on")
    path = fetched_file(name, downloads_root())
    if path is None:
        raise InputError(f"{name} is not fetched yet; run: lengthwise data fetch {name}")
    return read_file(
        path,
        reader=entry.reader,
        source_label=name,
        license_name=entry.license,
        limit=limit,
        tokenizer=tokenizer,
        watch=watch,
    )
