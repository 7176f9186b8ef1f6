"""A causal model that takes no time, for whoever needs a reader in a test."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = "{% for m in messages %}<u>{{ m['content'] }}{% endfor %}<a>"


def write_tiny_reader(path: Path, template: str | None = TEMPLATE) -> None:
    """Six layers of random weights over single bytes."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<u>": len(vocabulary), "<a>": len(vocabulary) + 1, "<e>": len(vocabulary) + 2}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<e>", additional_special_tokens=["<u>", "<a>"]
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
