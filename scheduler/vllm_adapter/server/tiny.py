"""The built-in tiny model: random weights, a real tokenizer, no download.

A 4-layer Llama of hidden size 256 costs the engine what its kernels cost, whatever the weights
say, so scheduling can be tried and measured on two CPU cores. The tokenizer is Mistral's tekken
(shipped inside ``mistral_common``) cut to its first ranks: a byte-level BPE stays valid when its
rarest merges are dropped, and a smaller vocabulary keeps the output layer from dominating a step;
one key-value head does the same for attention, whose CPU kernel reads the cache at memory speed.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

TINY_NAME = "tiny"
VOCAB_RANKS = 8_000
MAX_MODEL_LEN = 32_768
TINY_SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "torch_dtype": "float32",
}
# A change of anything written below needs a new number, so that caches are rebuilt.
FORMAT_VERSION = 2

_TEKKEN_FILE = "tekken_240911.json"
_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tiny_model(directory: Path | str) -> Path:
    """Write the tiny model into ``directory`` unless a complete one is there; return its path.

    Loads with ``--load-format dummy``: there is no weight file. ``manifest.json`` is written last,
    so that its presence means the rest is complete.
    """
    target = Path(directory)
    if _is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tiny-") as scratch:
        staged = Path(scratch) / TINY_NAME
        staged.mkdir()
        vocab_size = write_dummy_llama(staged, TINY_SHAPE, VOCAB_RANKS)
        _write_json(
            staged / "manifest.json", {"format_version": FORMAT_VERSION, "vocab_size": vocab_size}
        )
        if target.exists():
            shutil.rmtree(target)
        staged.rename(target)
    return target


def write_dummy_llama(directory: Path, shape: Mapping[str, Any], ranks: int) -> int:
    """Write a Llama without weights and a tokenizer cut to ``ranks``; return its vocabulary.

    ``shape``: fields of the model's configuration, sizes and ``torch_dtype`` among them.
    """
    vocab_size = _write_tokenizer(directory, ranks)
    _write_json(directory / "config.json", _model_config(vocab_size) | dict(shape))
    _write_json(directory / "generation_config.json", _generation_config())
    return vocab_size


def _is_complete(directory: Path) -> bool:
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        return False
    return bool(json.loads(manifest.read_text()).get("format_version") == FORMAT_VERSION)


def _token_id(token: str) -> int:
    return _SPECIAL_TOKENS.index(token)


def _model_config(vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": MAX_MODEL_LEN,
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": _token_id("<s>"),
        "eos_token_id": _token_id("</s>"),
    }


def _generation_config() -> dict[str, Any]:
    return {"bos_token_id": _token_id("<s>"), "eos_token_id": _token_id("</s>")}


def _write_tokenizer(directory: Path, ranks: int) -> int:
    """Write ``tokenizer.json`` and its configuration; return the vocabulary's size."""
    from tokenizers import Regex as TokenizersRegex
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tekken = json.loads((files("mistral_common") / "data" / _TEKKEN_FILE).read_text())
    pieces = [base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"][:ranks]]
    vocab, merges = _byte_level_bpe(pieces)

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TokenizersRegex(tekken["config"]["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", _token_id("<s>"))]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
            "model_max_length": MAX_MODEL_LEN,
            "clean_up_tokenization_spaces": False,
            "chat_template": _CHAT_TEMPLATE,
        },
    )
    return int(tokenizer.get_vocab_size(with_added_tokens=True))


def _byte_level_bpe(pieces: list[bytes]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a rank-ordered list of byte strings.

    A piece of rank r may be reached by joining any two pieces of lower rank; the merges are
    ordered by the rank of their result, then by the ranks of their parts, which is the order in
    which a rank-driven tokenizer would apply them.
    """
    to_text = _printable_bytes()
    rank = {piece: index for index, piece in enumerate(pieces)}
    text = ["".join(to_text[byte] for byte in piece) for piece in pieces]
    vocab = {token: index for index, token in enumerate(_SPECIAL_TOKENS)}
    vocab.update({token: index + len(_SPECIAL_TOKENS) for index, token in enumerate(text)})
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        halves = [
            (rank[piece[:cut]], rank[piece[cut:]])
            for cut in range(1, len(piece))
            if piece[:cut] in rank and piece[cut:] in rank
        ]
        merges.extend((text[left], text[right]) for left, right in sorted(halves))
    return vocab, merges


def _printable_bytes() -> dict[int, str]:
    """The byte-level BPE alphabet: each of the 256 bytes as one printable character (GPT-2)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in kept}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + offset)
    return table


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True))
