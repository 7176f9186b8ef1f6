from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pytest

from lengthwise.data.arena.traces import (
    azure_times,
    read_arxiv,
    read_azure,
    read_mooncake,
    read_servegen,
    read_vicuna,
    reader_name,
)
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


def test_mooncake(tmp_path):
    row = {"timestamp": 1500, "input_length": 9, "output_length": 3, "hash_ids": [1, 2]}
    path = written(tmp_path, "mooncake.jsonl", json.dumps(row))
    trace = read_mooncake(path)
    assert trace.arrival_s.tolist() == [1.5]
    assert trace.prefix_blocks == ((1, 2),)
    for changes in ({"timestamp": -1}, {"input_length": "9"}, {"hash_ids": ["a"]}, {"hash_ids": 3}):
        written(tmp_path, "mooncake.jsonl", json.dumps(row | changes))
        with pytest.raises(InputError, match=f"mooncake.jsonl:1: {next(iter(changes))} must be"):
            read_mooncake(path)
    with pytest.raises(InputError, match="at least one row"):
        read_mooncake(written(tmp_path, "mooncake.jsonl", ""))


def test_arxiv_and_vicuna(tmp_path):
    trace = read_arxiv(
        written(tmp_path, "arxiv.csv", "num_prefill_tokens,num_decode_tokens,x\n30,4,0\n")
    )
    assert trace.arrival_s is None
    assert trace.output_tokens.tolist() == [4]
    text = ",output_token_length,predicted_length,latency,model\n0,40,1,0.02,vicuna-13b\n"
    frame = read_vicuna(written(tmp_path, "vicuna.csv", text))
    assert frame.iloc[0].to_dict() == {
        "output_tokens": 40,
        "predicted_class": 1,
        "latency_s": 0.02,
    }


def archive(tmp_path, files):
    path = tmp_path / "servegen.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_servegen(tmp_path):
    histogram = {"0": {"input_tokens": "{7: 1.0}", "output_tokens": "{}"}}
    files = {
        "language/m/chunk-3-trace.csv": "0,0,0,,0,0\n600,2.5,1.1,Gamma,0.8,0.4\n",
        "language/m/chunk-3-dataset.json": json.dumps(histogram),
        "language/m/chunk-1-trace.csv": "0,1,1,Gamma,1,1\n",
        "readme.txt": "hello",
    }
    first, second = read_servegen(archive(tmp_path, files))
    assert (first.group, first.chunk, first.lengths) == ("language/m", 1, {})
    assert second.windows["rate_rps"].tolist() == [0.0, 2.5]
    assert second.lengths == {0: {"input_tokens": {7: 1.0}, "output_tokens": {}}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": "x"}, "no client trace"),
        ({"g/chunk-1-trace.csv": "0,fast,1\n"}, "not a readable ServeGen archive"),
        ({"g/chunk-1-dataset.json": "{"}, "not a readable ServeGen archive"),
        ({"g/chunk-1-dataset.json": '{"0": {"f": "{1: "}}'}, "must map window starts"),
        ({"g/chunk-1-dataset.json": "[]"}, "must map window starts"),
    ],
)
def test_a_bad_servegen_archive(tmp_path, files, message):
    with pytest.raises(InputError, match=message):
        read_servegen(archive(tmp_path, files))


def test_missing_and_damaged_archives(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_servegen(tmp_path / "none.tar.gz")
    with pytest.raises(InputError, match="not a readable"):
        read_servegen(written(tmp_path, "servegen.tar.gz", "nonsense"))
    with pytest.raises(InputError, match="no such file"):
        read_azure(tmp_path / "none.csv")


def test_names_tell_the_reader():
    assert reader_name("x/azure2023_code.csv.gz") == "azure"
    assert reader_name("servegen_clients.tar.gz") == "servegen"
    assert reader_name("prompts.csv") is None


def test_the_real_traces(real_data):
    folder = real_data / "traces"
    code = read_azure(folder / "azure2023_code.csv.gz")
    assert len(code) == 7300
    assert code.arrival_s[0] == pytest.approx(77.2994)
    assert len(read_azure(folder / "azure2023_conv.csv.gz")) == 14_176
    assert len(read_mooncake(folder / "mooncake_synthetic_trace.jsonl.gz")) == 3_993
    assert len(read_arxiv(folder / "arxiv_summarization_lengths.csv.gz")) == 28_257
    assert len(read_vicuna(folder / "vicuna13b_lmsys_len_and_predclass.csv.gz")) == 85_482
    assert len(read_servegen(folder / "servegen_clients.tar.gz")) == 105
    assert len(azure_times()) == 21_476
