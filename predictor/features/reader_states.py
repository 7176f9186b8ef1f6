"""Hidden states of a small causal language model where its answer would begin (torch).

    prompt -> chat template -> first layers -> state of the last token, at two depths

Nothing is fine-tuned. What a model is about to say stands in that state before its first word; the
upper third of the layers turns it into that word, and is not run.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from lengthwise.data.errors import InputError
from lengthwise.predictor.features.reader_weights import reader_folder, weights_digest
from lengthwise.predictor.quiet import quietly

logger = logging.getLogger("lengthwise.reader")

MAX_TOKENS = 96
DEPTHS = (1 / 2, 2 / 3)
_BATCH = 32
_CHARS_A_TOKEN = 12  # of a longer text the middle is not even tokenised
_MARK = "\u241e"
_REMEMBERED = 32_768
_MOST = float(np.finfo(np.float16).max)


class CausalStates:
    """A causal model cut off at the deepest layer that is read.

    `digest` says which weights these are, `layers` after which of them the state is taken, `width`
    how many numbers a text has. Texts that were read are remembered. Safe to call from any thread;
    a GPU is used where there is one, and given up for the CPU if it fails.
    """

    def __init__(self, folder: Path, max_tokens: int = MAX_TOKENS, device: str = "auto") -> None:
        self.digest = weights_digest(folder)
        try:
            with quietly():
                model = AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.bfloat16,
                )
                self._tokenizer = AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(f"reader {str(folder)!r} cannot be loaded: {error}") from error
        blocks = _blocks(model, folder)
        self.layers = tuple(max(1, round(depth * len(blocks))) for depth in DEPTHS)
        del blocks[self.layers[-1] :]
        model.config.num_hidden_layers = len(blocks)
        for number in set(self.layers):
            blocks[number - 1].register_forward_hook(self._hook(number))
        self.width = len(self.layers) * int(model.config.hidden_size)
        self.max_tokens = max_tokens
        self.remembered: OrderedDict[bytes, NDArray[np.float16]] = OrderedDict()
        self._before, self._after = _template(self._tokenizer)
        if len(self._before) + len(self._after) >= max_tokens // 2:
            raise InputError(
                f"reader {str(folder)!r}: its chat template alone takes "
                f"{len(self._before) + len(self._after)} of the {max_tokens} tokens that are read"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().requires_grad_(False)
        self._lock = threading.Lock()
        self._last = torch.zeros(0, dtype=torch.long)
        self._taken: dict[int, torch.Tensor] = {}
        self._to(device)

    def read(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """States, (n, width), and tokens a character, (n,); NaN both of a text without words."""
        states = np.full((len(texts), self.width), np.nan, np.float32)
        density = np.full(len(texts), np.nan)
        ids: dict[int, list[int]] = {}
        keys: dict[int, bytes] = {}
        for i, text in enumerate(texts):
            if not text.strip():
                continue
            window, density[i] = self._tokens(text)
            if not window:
                continue
            keys[i] = hashlib.blake2b(np.array(window, np.int32).tobytes(), digest_size=16).digest()
            if (known := self.remembered.get(keys[i])) is not None:
                states[i] = known
            else:
                ids[i] = window
        order = sorted(ids, key=lambda i: len(ids[i]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            states[rows] = found = self._forward([ids[i] for i in rows])
            self._remember([keys[i] for i in rows], found)
        return states, density

    @staticmethod
    def limit_threads(threads: int) -> None:
        """Compute with so many threads, in this process: the rest is others' who serve."""
        torch.set_num_threads(threads)

    def _tokens(self, text: str) -> tuple[list[int], float]:
        """The tokens that are read, and how many a character takes: head and tail of the long."""
        most = self.max_tokens * _CHARS_A_TOKEN
        if len(text) > most:
            text = text[: most * 3 // 4] + " " + text[-most // 4 :]
        text = text.encode("utf-8", "replace").decode()
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        density = len(ids) / len(text)
        room = self.max_tokens - len(self._before) - len(self._after)
        if len(ids) > room:
            ids = ids[: room - room // 4] + ids[-(room // 4) :]
        return [*self._before, *ids, *self._after], density

    def _remember(self, keys: Sequence[bytes], states: NDArray[np.float16]) -> None:
        for key, row in zip(keys, states, strict=True):
            self.remembered[key] = row
        while len(self.remembered) > _REMEMBERED:
            self.remembered.popitem(last=False)

    def _forward(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float16]:
        """States of token rows, (n, width), as half floats: what is trained on is served."""
        longest = max(map(len, rows))
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        with self._lock:
            try:
                states = self._run(ids, mask)
            except RuntimeError as error:  # torch's and CUDA's own
                if self._device == "cpu":
                    raise
                logger.warning("the reader's device %s is lost (%s): on to the CPU", self._device,
                               error)  # fmt: skip
                self._to("cpu")
                states = self._run(ids, mask)
        return np.clip(states, -_MOST, _MOST).astype(np.float16)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor) -> NDArray[np.float32]:
        self._last = mask.sum(1).to(self._device) - 1
        with torch.inference_mode():
            self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                use_cache=False,
            )
            taken = torch.cat([self._taken.pop(number) for number in self.layers], 1)
        return taken.float().cpu().numpy()

    def _hook(self, number: int) -> Any:
        def take(_module: nn.Module, _given: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            self._taken[number] = states[torch.arange(len(states)), self._last]

        return take

    def _to(self, device: str) -> None:
        self._device = device
        self._model.to(device)


def causal_states(name: str, max_tokens: int = MAX_TOKENS, fetch: bool = True) -> CausalStates:
    """The states of a reader by its name, loaded once a process; InputError as `reader_folder`."""
    return _loaded(reader_folder(name, fetch=fetch), max_tokens)


@lru_cache(maxsize=2)
def _loaded(folder: Path, max_tokens: int) -> CausalStates:
    return CausalStates(folder, max_tokens)


def _blocks(model: nn.Module, folder: Path) -> nn.ModuleList:
    """The model's own list of layers, which goes by different names."""
    count = getattr(model.config, "num_hidden_layers", None)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    found = next((part for part in lists if len(part) == count), None)
    if found is None or model.config.is_encoder_decoder:
        raise InputError(f"reader {str(folder)!r} is no causal model with a list of layers")
    return found


def _template(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Tokens before and after a prompt: a user's only message, and where the answer begins."""
    before, after = "", "\n"
    if tokenizer.chat_template:
        message = [{"role": "user", "content": _MARK}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before, _, after = str(text).partition(_MARK)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    return ids(before), ids(after)
