from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch  # noqa: E402

from data.errors import InputError  # noqa: E402
from predictor.bert import (  # noqa: E402
    BertLengthConfig,
    BertLengthModel,
    BertPredictor,
    encoder_path,
    tokenize,
)
from predictor.bert_fit import fit_bert  # noqa: E402
from predictor.distribution import DEFAULT_LEVELS  # noqa: E402
from predictor.metrics import kendall_tau  # noqa: E402

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
def fitted(tiny_encoder: str, tables: dict[str, pd.DataFrame]) -> BertPredictor:
    torch.set_num_threads(1)  # a model this small only waits for its other threads
    return fit_bert(
        tables["train"][:400],
        tables["calibration"][:100],
        encoder=tiny_encoder,
        epochs=4,
        learning_rate=3e-3,
        max_length=32,
        use_cpu=True,
    )


def test_it_learns_to_order_answers(fitted: BertPredictor, tables: dict[str, pd.DataFrame]) -> None:
    test = tables["test"][:200]
    d = fitted.predict(test["prompt"].tolist(), test["slo_class"].tolist())
    assert kendall_tau(test["output_tokens"], d.median()) > 0.5


def test_any_prompt_gets_a_valid_distribution(fitted: BertPredictor) -> None:
    d = fitted.predict(["", "x" * 100_000, "🙂", "a b c"], ["chat", None, "never-seen", "chat"])
    assert (d.quantiles >= 1).all()
    assert (np.diff(d.quantiles, axis=1) >= 0).all()
    assert len(fitted.predict([])) == 0


def test_save_load_and_quantise(fitted: BertPredictor, tmp_path: Path) -> None:
    prompts = ["write an essay about bees in 100 words", "call the tool"]
    fitted.save(tmp_path)
    again = BertPredictor.load(tmp_path)
    before = fitted.predict(prompts).quantiles
    np.testing.assert_allclose(again.predict(prompts).quantiles, before, rtol=1e-5)
    np.testing.assert_allclose(again.quantized().predict(prompts).quantiles, before, rtol=0.2)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a BERT predictor"):
        BertPredictor.load(tmp_path)


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
