from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch  # noqa: E402
from pickle_guard import no_unpickling  # noqa: E402

from lengthwise.data.errors import InputError  # noqa: E402
from lengthwise.predictor.distribution import DEFAULT_LEVELS  # noqa: E402
from lengthwise.predictor.estimators.encoder import (  # noqa: E402
    BertLengthConfig,
    BertLengthModel,
    BertReader,
    at_levels,
    encoder_path,
    tokenize,
)
from lengthwise.predictor.fitting.fit import fit_predictor  # noqa: E402
from lengthwise.predictor.fitting.metrics import coverage, interval, kendall_tau, pinball  # noqa: E402
from lengthwise.predictor.model import LengthPredictor  # noqa: E402

WORDS = [
    "write",
    "an",
    "essay",
    "about",
    "in",
    "words",
    "list",
    "facts",
    "one",
    "bullet",
    "each",
    "call",
    "the",
    "tool",
    "for",
]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A two-layer BERT with random weights and a vocabulary of letters, words and digits."""
    path = tmp_path_factory.mktemp("encoder")
    letters = [*'abcdefghijklmnopqrstuvwxyz0123456789.,{}[]":']
    pieces = letters + [f"##{c}" for c in letters] + list(WORDS)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(
        vocab={word: i for i, word in enumerate(vocabulary)}
    ).save_pretrained(path)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def fitted(tiny_encoder: str, tables: dict[str, pd.DataFrame]) -> LengthPredictor:
    """A stack: the tiny encoder beside a small booster."""
    torch.set_num_threads(1)  # a model this small only waits for its other threads
    settings = {"epochs": 4, "learning_rate": 3e-3, "max_length": 32, "int8": False}
    return fit_predictor(
        tables["train"][:400],
        tables["calibration"],
        estimator="stack",
        reader_params={"encoder": tiny_encoder, "use_cpu": True, **settings},
        blocks=("structure", "request"),
        n_estimators=15,
    )


def test_the_reader_alone_learns_to_order_answers(
    fitted: LengthPredictor, tables: dict[str, pd.DataFrame]
) -> None:
    assert fitted.reading is not None
    test = tables["test"][:200]
    read = fitted.reading.reader.log_quantiles(test["prompt"].tolist(), np.array([0.5]))[:, 0]
    assert kendall_tau(test["output_tokens"], read) > 0.5


def test_the_stack_is_no_worse_than_its_booster_and_is_calibrated(
    fitted: LengthPredictor, tables: dict[str, pd.DataFrame]
) -> None:
    test = tables["test"]
    y, prompts, classes = (test[c].tolist() for c in ("output_tokens", "prompt", "slo_class"))
    both = fitted.predict(prompts, classes)
    alone = fitted.predict_features(fitted.features(prompts, classes), classes)
    assert pinball(y, both) <= 1.05 * pinball(y, alone)
    assert 0.7 < coverage(y, *interval(both)) < 0.9


def test_any_prompt_gets_a_valid_distribution(fitted: LengthPredictor) -> None:
    prompts = ["", "x" * 100_000, "🙂", "a b c", None]
    d = fitted.predict(prompts, ["chat", None, "never-seen", "chat", "chat"])
    assert (d.quantiles >= 1).all()
    assert (np.diff(d.quantiles, axis=1) >= 0).all()
    np.testing.assert_allclose(d.quantiles[4], fitted.class_prior("chat"))
    assert len(fitted.predict([])) == 0


def test_an_artifact_carries_its_reader(fitted: LengthPredictor, tmp_path: Path) -> None:
    prompts = ["write an essay about bees in 100 words", "call the tool"]
    fitted.save(tmp_path)
    again = LengthPredictor.load(tmp_path)
    before = fitted.predict(prompts).quantiles
    np.testing.assert_allclose(again.predict(prompts).quantiles, before, rtol=1e-5)
    quantized = BertReader.load(tmp_path / "reader", int8=True)
    assert fitted.reading is not None
    np.testing.assert_allclose(
        quantized.native(prompts), fitted.reading.reader.native(prompts), atol=0.2
    )
    weights = tmp_path / "reader" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a fine-tuned encoder"):
        LengthPredictor.load(tmp_path)


def test_a_reader_loads_without_unpickling_and_from_safetensors_only(
    fitted: LengthPredictor, tmp_path: Path
) -> None:
    fitted.save(tmp_path)
    with no_unpickling():
        LengthPredictor.load(tmp_path).predict(["write an essay about bees"])
        BertReader.load(tmp_path / "reader", int8=True).native(["call the tool"])
    weights = tmp_path / "reader" / "model.safetensors"
    assert fitted.reading is not None
    torch.save(fitted.reading.reader.model.state_dict(), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with no_unpickling(), pytest.raises(InputError, match="not a fine-tuned encoder"):
        LengthPredictor.load(tmp_path)


def test_bert_is_the_reader_alone(tiny_encoder: str, tables: dict[str, pd.DataFrame]) -> None:
    predictor = fit_predictor(
        tables["train"][:100],
        tables["calibration"][:50],
        estimator="bert",
        reader_params={"encoder": tiny_encoder, "epochs": 1, "max_length": 16, "use_cpu": True},
        blocks=("structure", "request"),
        n_estimators=5,
    )
    assert predictor.reading is not None
    assert predictor.reading.share == 1.0
    assert predictor.card["name"] == "bert"


def test_columns_of_a_frozen_encoder_travel_with_the_artifact(
    tiny_encoder: str, tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    predictor = fit_predictor(
        tables["train"][:300],
        tables["calibration"][:50],
        embedding=tiny_encoder,
        blocks=("structure", "request"),
        n_estimators=10,
    )
    names = [name for name in predictor.feature_names if name.startswith("embedding_")]
    assert names[-2:] == ["embedding_ridge", "embedding_class_ridge"]
    prompts, classes = ["call the tool", "", "é" * 999], ["chat", None, "new"]
    predictor.save(tmp_path)
    again = LengthPredictor.load(tmp_path)
    before = predictor.predict(prompts, classes).quantiles
    np.testing.assert_allclose(again.predict(prompts, classes).quantiles, before, rtol=1e-5)
    with pytest.raises(ValueError, match="unknown feature block 'smell'"):
        fit_predictor(tables["train"], tables["calibration"], blocks=("smell",))


@given(
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    st.lists(st.floats(0.001, 0.999), min_size=2, max_size=8),
)
def test_reading_other_levels_keeps_their_order(steps: list[float], wanted: list[float]) -> None:
    logs = np.cumsum(np.abs(steps))[None, :]
    grid = np.array([0.1, 0.4, 0.5, 0.9])
    np.testing.assert_allclose(at_levels(logs, grid.tolist(), grid), logs, atol=1e-12)
    read = at_levels(logs, grid.tolist(), np.sort(wanted))[0]
    assert (np.diff(read) >= -1e-9).all()


def test_a_cut_answer_is_no_reason_to_predict_less(tiny_encoder: str) -> None:
    model = BertLengthModel.from_encoder(tiny_encoder, np.linspace(3.0, 6.0, len(DEFAULT_LEVELS)))
    ids, mask = torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.long)
    low = torch.tensor([0.0])
    ended = model(ids, mask, labels=low, censored=torch.tensor([0.0]))["loss"]
    cut = model(ids, mask, labels=low, censored=torch.tensor([1.0]))["loss"]
    assert ended > 0.5
    assert cut == 0.0


def test_long_prompts_keep_head_and_tail(tiny_encoder: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_encoder)
    ids = tokenize(tokenizer, ["a " * 50 + "z " * 50], max_length=22)["input_ids"][0]
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words == ["[CLS]", *"a" * 15, *"z" * 5, "[SEP]"]


def test_names_of_encoders() -> None:
    assert encoder_path("some/encoder") == "some/encoder"
    assert BertLengthConfig(max_length=7).to_dict()["max_length"] == 7
