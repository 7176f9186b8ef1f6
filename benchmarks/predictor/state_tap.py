"""A model's hidden states, taken out of a running vLLM.

A worker extension (``--worker-extension-cls``, an option of vLLM's own) wraps the model's
``compute_logits``: what comes in is every request's last hidden state, after the final norm,
outside of compiled code and CUDA graphs. The one that a prompt ends with is kept.

A module of its own, which imports next to nothing: vLLM's workers import it, and on a CPU they do
not start where llvmlite is, as it is wherever numba is.
"""

from __future__ import annotations

import time
from typing import Any


class StateTap:
    """Mixed into vLLM's worker: the last hidden state of every prompt, and what taking it costs."""

    model_runner: Any

    def tap_states(self) -> None:
        """From now on."""
        runner, inner = self.model_runner, self.model_runner.model.compute_logits
        self.tapped: dict[str, Any] = {}
        self.tap_steps, self.tap_s, self.logits_s = 0, 0.0, 0.0

        def compute_logits(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            for row, name in enumerate(runner.input_batch.req_ids):
                request = runner.requests[name]
                if request.num_computed_tokens < request.num_prompt_tokens:
                    self.tapped[name] = hidden_states[row].detach().clone()
            tapped = time.perf_counter()
            logits = inner(hidden_states, *args, **kwargs)
            self.tap_steps += 1
            self.tap_s += tapped - began
            self.logits_s += time.perf_counter() - tapped
            return logits

        runner.model.compute_logits = compute_logits

    def tapped_states(self) -> dict[str, list[float]]:
        """By request; they are forgotten here."""
        states = {name: state.float().tolist() for name, state in self.tapped.items()}
        self.tapped.clear()
        return states

    def tap_cost(self) -> tuple[int, float, float]:
        """Steps, seconds for taking states in all of them, and for the logits."""
        return self.tap_steps, self.tap_s, self.logits_s
