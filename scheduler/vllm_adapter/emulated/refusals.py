"""What an emulated server refuses, because a device that computes nothing cannot give it."""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor


class Refusals(LogitsProcessor):
    """``--logits-processors``: vLLM's API process asks it about every request, nobody else does.

    A logits processor's ``validate_params`` is the one hook before a request is queued; what it
    raises becomes HTTP 400.
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """ValueError for log-probabilities and structured outputs."""
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(sampling_params, name, None) is not None:
                raise ValueError(f"{name}: an emulated engine has no probabilities to give")
        if getattr(sampling_params, "structured_outputs", None) is not None:
            raise ValueError(
                "structured outputs: an emulated engine makes its tokens up and follows no grammar"
            )

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        raise RuntimeError("this engine samples from logits: it is not an emulated one")

    def is_argmax_invariant(self) -> bool:
        """It changes nothing."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """It has no state."""

    def apply(self, logits: Any) -> Any:
        """The logits as they are."""
        return logits
