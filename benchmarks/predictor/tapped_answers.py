"""A real model's answers with its own states, read out of vLLM while it serves (`served_state`).

SmolLM2 answers a list of prompts on vLLM, greedily. A worker extension (``--worker-extension-cls``,
an option of vLLM's own) wraps the model's ``compute_logits``: what comes in is every request's last
hidden state, after the final norm, outside of compiled code and CUDA graphs. The one that a prompt
ends with is kept. The file holds lengths and states, no text.

A module of its own, which imports little: vLLM's workers import it, and on a CPU they do not start
where llvmlite is, as it is wherever numba is.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

TAP = "benchmarks.predictor.tapped_answers.StateTap"


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


def answer(prompts: list[str], max_tokens: int, out: Path) -> None:
    """Lengths, whether cut, and states, ``(n,)`` and ``(n, width)``; written to ``out``."""
    from benchmarks.common import note
    from benchmarks.predictor.own_answers import BATCH, started

    model = started(worker_extension_cls=TAP)
    from vllm import SamplingParams

    model.collective_rpc("tap_states")
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    tokens: list[int] = []
    cut: list[bool] = []
    states: list[list[float]] = []
    began = time.perf_counter()
    for start in range(0, len(prompts), BATCH):
        chats = [[{"role": "user", "content": p}] for p in prompts[start : start + BATCH]]
        done = model.chat(chats, params, use_tqdm=False)
        taken = model.collective_rpc("tapped_states")[0]
        # vLLM's own name of a request begins with the one it answers under
        of_request = {name.split("-")[0]: state for name, state in taken.items()}
        for answered in done:
            tokens.append(len(answered.outputs[0].token_ids))
            cut.append(answered.outputs[0].finish_reason == "length")
            states.append(of_request[answered.request_id])
        note(
            f"{len(tokens)} of {len(prompts)}, {sum(tokens) / (time.perf_counter() - began):.0f}/s"
        )
    steps, tap_s, logits_s = model.collective_rpc("tap_cost")[0]
    np.savez_compressed(
        out, tokens=tokens, cut=cut, states=np.array(states, np.float32), steps=steps,
        tap_s=tap_s, logits_s=logits_s, seconds=time.perf_counter() - began,
    )  # fmt: skip


def main() -> None:
    """PROMPTS.json MAX_TOKENS OUT.npz"""
    answer(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), Path(sys.argv[3]))
