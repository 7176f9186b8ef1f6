"""Token counts by a named tokenizer, loaded on first use.

`tekken` is Mistral's Tekken as shipped inside `mistral_common` (raw text, no begin or end marks);
any other name is a Hugging Face tokenizer: a folder, a `tokenizer.json`, or a hub name.
Counts by words are not offered: on real chat the words-to-tokens ratio varies too much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lengthwise.data.chat import valid_text
from lengthwise.data.errors import InputError, shown

DEFAULT_TOKENIZER = "tekken"
_TEKKEN_FILE = "tekken_240911.json"
_PROGRESS_ROWS = 20_000

Counter = Callable[[str], int]


def count_tokens(
    texts: Sequence[str], tokenizer: str = DEFAULT_TOKENIZER, *, progress: bool = False
) -> NDArray[np.int64]:
    """(n,) tokens of each text, without special tokens; equal texts are counted once."""
    count = load_counter(tokenizer)
    seen: dict[str, int] = {}
    # None: only on a terminal
    silent = None if progress and len(texts) >= _PROGRESS_ROWS else True
    for text in tqdm(texts, "counting tokens", leave=False, disable=silent):
        if text not in seen:
            seen[text] = count(text)
    return np.array([seen[text] for text in texts], dtype=np.int64)


def count_response_tokens(
    texts: Sequence[str], tokenizer: str = DEFAULT_TOKENIZER, *, progress: bool = False
) -> NDArray[np.int64]:
    """(n,) tokens of each answer, plus 1 for the end of sequence that the server generates."""
    return count_tokens(texts, tokenizer, progress=progress) + 1


def load_counter(tokenizer: str = DEFAULT_TOKENIZER) -> Counter:
    """text -> number of tokens; loaded once, InputError when the tokenizer cannot be had."""
    return _loaded(tokenizer)


@lru_cache(maxsize=4)
def _loaded(tokenizer: str) -> Counter:
    return _tekken() if tokenizer == DEFAULT_TOKENIZER else _hugging_face(tokenizer)


def _tekken() -> Counter:
    try:
        import mistral_common
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ImportError as error:
        raise InputError("tokenizer 'tekken' needs the package mistral_common") from error
    path = Path(mistral_common.__file__).parent / "data" / _TEKKEN_FILE
    if not path.is_file():
        raise InputError(f"mistral_common ships no {_TEKKEN_FILE}; another version is needed")
    tekken = Tekkenizer.from_file(path)

    # a lone surrogate (from a broken \ud83d escape) is no text Tekken can encode
    return lambda text: len(tekken.encode(valid_text(text), bos=False, eos=False))


def _hugging_face(name: str) -> Counter:
    loaded: Any
    path = Path(name)
    try:
        if path.is_file():
            from tokenizers import Tokenizer

            loaded = _whole(Tokenizer.from_file(str(path)))
        elif (path / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            loaded = _whole(Tokenizer.from_file(str(path / "tokenizer.json")))
        else:
            from transformers import AutoTokenizer

            slow_or_fast = AutoTokenizer.from_pretrained(name)
            return lambda text: len(
                slow_or_fast.encode(
                    valid_text(text), add_special_tokens=False, truncation=False, padding=False
                )
            )
    except ImportError as error:
        raise InputError(f"tokenizer {name!r} needs the package {error.name}") from error
    except Exception as error:  # both libraries raise bare Exception for an unreadable file
        raise InputError(
            f"tokenizer {name!r} cannot be loaded: {shown(str(error), 120)}"
        ) from error
    return lambda text: len(loaded.encode(valid_text(text), add_special_tokens=False).ids)


def _whole(loaded: Any) -> Any:
    """A tokenizer that counts all of a text, whatever its file says of cutting and filling up."""
    loaded.no_truncation()
    loaded.no_padding()
    if getattr(loaded.model, "dropout", None):  # merges left out at random, for training
        loaded.model.dropout = None
    return loaded
