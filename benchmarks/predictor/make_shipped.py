"""How the predictor that comes with the package is made, and how it does on a model it never saw.

    python -m benchmarks.predictor.make_shipped --judge              # leaves each model out in turn
    python -m benchmarks.predictor.make_shipped --out predictor/shipped.zip

It learns from the answers of all packs whose rows' licences allow it, not more than so many of
each model, with a text block of a tenth of the usual size; the packs' test sides (split seed 0) are
left out. Nothing of a prompt can be read from it: words are hashed.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common import finish, note, plain_parser, print_table
from benchmarks.predictor.learning_curve import halves, mended, taught
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.evaluate import evaluate_distribution
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor

PACKS = ("gpt35", "gpt4", "llama31_8b", "llama3_8b", "mixtral_8x7b")
LICENCES = {"MIT", "Apache-2.0"}
MOST_ROWS = {"train": 4_000, "calibration": 1_000}  # of a pack
SMALL_TEXT = {"bits": 13, "components": 16}
FINISHED = (0, 100, 300, 1_000)
METRICS = ("tau", "within_task_tau", "mae", "coverage")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same predictor is the same file


def pooled(packs: Sequence[str], side: str, seed: int, half: bool) -> pd.DataFrame:
    """Rows of all packs, of half of the questions if asked for, in random order."""
    tables = []
    for pack in packs:
        table = split_table(load_table(pack), seed=seed)[side]
        table = table[table["license"].isin(LICENCES)]
        table = halves(table, seed)[0] if half else table
        tables.append(table.sample(min(len(table), MOST_ROWS[side]), random_state=seed))
    return pd.concat(tables).sample(frac=1, random_state=seed).reset_index(drop=True)


def made(packs: Sequence[str], seed: int, half: bool = False) -> LengthPredictor:
    """The predictor of these packs."""
    train, calibration = (pooled(packs, side, seed, half) for side in ("train", "calibration"))
    return fit_predictor(train, calibration, seed=seed, text_params=SMALL_TEXT, n_jobs=1)


def judged(target: str, seed: int) -> list[dict[str, Any]]:
    """How it does on a pack left out, by how many of its requests have finished."""
    predictor = made([pack for pack in PACKS if pack != target], seed, half=True)
    parts = split_table(load_table(target), seed=seed)
    stream = halves(parts["train"], seed)[1].sample(frac=1, random_state=seed)
    stream, test = stream.reset_index(drop=True), parts["test"]
    lines = []
    for finished in FINISHED:
        lengths = taught(predictor, stream.iloc[:finished], residual=True)
        said = evaluate_distribution(test, mended(predictor, lengths, test))
        lines.append({"model": target, "finished": finished} | {m: said[m] for m in METRICS})
    return lines


def pack_up(predictor: LengthPredictor, out: Path) -> None:
    """The artifact in one compressed file."""
    with tempfile.TemporaryDirectory() as folder:
        predictor.save(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in files:
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())


def main() -> None:
    arguments = plain_parser(__doc__)
    arguments.add_argument("--out", type=Path, help="write the predictor of all packs here")
    arguments.add_argument("--judge", action="store_true", help="leave each model out in turn")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    result: dict[str, Any] = {}
    if given.judge:
        lines = []
        for target in PACKS:
            note(target)
            lines += judged(target, given.seed)
        print_table(
            ["model left out", "finished", *METRICS],
            [[*(line[k] for k in ("model", "finished")), *(f"{line[m]:.3g}" for m in METRICS)]
             for line in lines],
        )  # fmt: skip
        result["judged"] = lines
    if given.out is not None:
        predictor = made(PACKS, given.seed)
        predictor.card["source_label"] = "shipped: " + ", ".join(PACKS)
        pack_up(predictor, given.out)
        note(f"{given.out}: {given.out.stat().st_size / 1e6:.2f} MB")
        result["card"] = json.loads(json.dumps(predictor.card, default=str))
    finish("shipped", result)


if __name__ == "__main__":
    main()
