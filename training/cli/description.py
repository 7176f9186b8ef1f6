"""What `lengthwise data describe` shows of a source: the figures of `data.describe` as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lengthwise.data.describe import unused_lines


def render(description: dict[str, Any], console: Console) -> None:
    """Print a description as tables."""
    head = Table(title=str(description["spec"]), show_header=False)
    for key, value in description.items():
        if key not in ("spec", "by", "predictions", "unused") and value is not None:
            head.add_row(key.replace("_", " "), _text(value))
    console.print(head)
    for line in unused_lines(description.get("unused", {})):
        console.print(Text(line), soft_wrap=True)
    if description.get("predictions"):
        console.print(_errors_table(description["predictions"]))
    rows = description.get("by")
    if not rows:
        return
    keys = [key for key, value in rows[0].items() if not isinstance(value, dict)]
    lengths = [key for key, value in rows[0].items() if isinstance(value, dict)]
    body = Table(title="by " + ", ".join(k for k in keys if isinstance(rows[0][k], str)))
    for key in keys:
        number = not isinstance(rows[0][key], str)
        body.add_column(key.replace("_", " "), justify="right" if number else "left")
    for key in lengths:
        body.add_column(f"{key.replace('_', ' ')} p50/p95/max", justify="right")
    for row in rows:
        figures = [f"{row[k]['p50']:.0f}/{row[k]['p95']:.0f}/{row[k]['max']}" for k in lengths]
        body.add_row(*(_text(row[key]) for key in keys), *figures)
    console.print(body)


def _errors_table(predictions: list[dict[str, Any]]) -> Table:
    """Champion and shadow on the same requests, one above the other."""
    table = Table(title="predictions against finished answers")
    for key in predictions[0]:
        number = key not in ("role", "version", "beside")
        table.add_column(key.replace("_", " "), justify="right" if number else "left")
    for side in predictions:
        table.add_row(*("-" if value is None else _text(value) for value in side.values()))
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )
