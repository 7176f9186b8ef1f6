import gzip
import io
import json

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.training.console import SilentSteps
from lengthwise.training.train.predict import predict_file


class TextLength:
    """A predictor whose median is the length of the text."""

    def predict(self, prompts, slo_class=None, prompt_tokens=None):
        assert len(slo_class) == len(prompt_tokens) == len(prompts)
        middle = np.array([float(len(p)) for p in prompts])
        rows = np.stack([middle / 2, middle, middle * 2], axis=1)
        return LengthDistribution(np.array([0.05, 0.5, 0.99]), np.maximum(rows, 1.0))


def run(source, target):
    return predict_file(TextLength(), str(source), str(target), steps=SilentSteps())


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_keep_their_order_and_fields(tmp_path):
    rows = [
        {"id": i, "prompt": "x" * (i % 50 + 2), "slo_class": "chat", "extra": {"é": [i, None]}}
        for i in range(1200)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    assert run(source, tmp_path / "out.jsonl") == 1200
    out = read(tmp_path / "out.jsonl")
    added = [(row.pop("predicted_tokens"), row.pop("quantiles")) for row in out]
    assert out == rows
    assert [tokens for tokens, _ in added] == [len(row["prompt"]) for row in rows]
    assert added[1][1] == {"0.05": 1.5, "0.5": 3.0, "0.99": 6.0}


def test_packed_rows_and_odd_characters_pass(tmp_path):
    source = tmp_path / "rows.jsonl.gz"
    with gzip.open(source, "wt", encoding="utf-8") as file:
        file.write('{"prompt": "grüße 🎲 \\ud800"}\n\n{"prompt": "two", "prompt_tokens": 3}\n')
    assert run(source, tmp_path / "out.jsonl") == 2
    assert read(tmp_path / "out.jsonl")[0]["prompt"] == "grüße 🎲 \ud800"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "no prompt"}', "'prompt' must hold text"),
        ('{"prompt": ""}', "'prompt' must hold text"),
        ('{"prompt": "  "}', "'prompt' must hold text"),
        ('{"prompt": 5}', "got 5"),
        ('{"prompt": "x", "slo_class": 3}', "'slo_class' must be text"),
        ('{"prompt": "x", "prompt_tokens": -1}', "'prompt_tokens' must be"),
        ('{"prompt": "x", "prompt_tokens": true}', "'prompt_tokens' must be"),
        ('{"prompt": "x"', "not JSON"),
        ("[1]", "JSON object"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_leaves_nothing(tmp_path, line, message):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        run(source, tmp_path / "out.jsonl")
    assert f"{source}:3: " in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_conversations_are_read_as_a_server_reads_them(tmp_path):
    asked = [{"role": "user", "content": [{"type": "text", "text": "four words are here"}]}]
    answered = [*asked, {"role": "assistant", "content": "An answer, which is not read."}]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps({"messages": turns}) for turns in (asked, answered)))
    assert run(source, tmp_path / "out.jsonl") == 2
    first, second = read(tmp_path / "out.jsonl")
    assert second["messages"] == answered
    assert first["predicted_tokens"] == second["predicted_tokens"] >= len("four words are here")


def test_an_empty_file_gives_an_empty_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    assert run(tmp_path / "rows.jsonl", tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_standard_streams(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO('\ufeff{"prompt": "four"}\n'))
    assert run("-", "-") == 1
    assert json.loads(capsys.readouterr().out)["predicted_tokens"] == 4.0


def test_a_file_can_be_predicted_in_place(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"prompt": "four"}\n')
    run(source, source)
    assert read(source)[0]["quantiles"]["0.5"] == 4.0
