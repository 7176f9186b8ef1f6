from __future__ import annotations

import gzip

import numpy as np
import pytest

from lengthwise.data.arena.traces import azure_times, read_azure
from lengthwise.data.errors import InputError


def written(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_azure_as_stored_and_as_published(tmp_path):
    stored = written(tmp_path, "azure_a.csv", "t_s,in_tok,out_tok\n1.5,10,2\n2.5,20,4\n")
    published = written(
        tmp_path,
        "azure_b.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n",
    )
    a, b = read_azure(stored), read_azure(published)
    assert a.arrival_s.tolist() == [1.5, 2.5]
    assert a.prompt_tokens.tolist() == [10, 20]
    assert len(a) == 2
    assert np.diff(b.arrival_s) == pytest.approx([0.052])
    assert b.arrival_s[0] == pytest.approx(18 * 3600 + 17 * 60 + 3.97996)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t_s,in_tok,out_tok\n", "at least one row"),
        ("t_s,in_tok\n1,2\n", "needs a column out_tok or GeneratedTokens"),
        ("t_s,in_tok,out_tok\n2,1,1\n1,1,1\n", "row 1: arrivals must be .* sorted, got 1"),
        ("t_s,in_tok,out_tok\n-2,1,1\n", "row 0: arrivals"),
        ("t_s,in_tok,out_tok\n1,x,1\n", "row 0: in_tok must be a whole number >= 0, got 'x'"),
        ("t_s,in_tok,out_tok\n1,1,-1\n", "row 0: out_tok"),
        ("t_s,in_tok,out_tok\n1,1,\n", "row 0: out_tok"),
        ("t_s,in_tok,out_tok\nsoon,1,1\n", "row 0: TIMESTAMP must be a time, got 'soon'"),
        ("", "not a readable CSV"),
    ],
)
def test_a_bad_azure_file(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_azure(written(tmp_path, "azure.csv", text))


def test_both_azure_services_on_one_clock(tmp_path, monkeypatch):
    (tmp_path / "d" / "traces").mkdir(parents=True)
    for name, times in (("code", "2,1,1\n5,1,1\n"), ("conv", "0,1,1\n4,1,1\n")):
        path = tmp_path / "d" / "traces" / f"azure2023_{name}.csv.gz"
        path.write_bytes(gzip.compress(f"t_s,in_tok,out_tok\n{times}".encode()))
    monkeypatch.setenv("LENGTHWISE_DATA", str(tmp_path / "d"))
    assert azure_times().tolist() == [0.0, 2.0, 4.0, 5.0]


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_azure(tmp_path / "none.csv")


def test_the_real_traces(real_data):
    folder = real_data / "traces"
    code = read_azure(folder / "azure2023_code.csv.gz")
    assert len(code) == 7300
    assert code.arrival_s[0] == pytest.approx(77.2994)
    assert len(read_azure(folder / "azure2023_conv.csv.gz")) == 14_176
    assert len(azure_times()) == 21_476
