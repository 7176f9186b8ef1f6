"""What is in LMDeploy's running batch, read from the inputs of its steps.

A row is a sequence; with every step LMDeploy says which rows go on, and a prefill adds rows. Ended
answers leave one step late: the next step is sent before the tokens of the last are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.data.arrays import IntArray


class BatchRows:
    """How many tokens each row may still get, and how long its context is; ``(rows,)``."""

    def __init__(self) -> None:
        self.left: IntArray = np.zeros(0, dtype=np.int64)
        self.context: IntArray = np.zeros(0, dtype=np.int64)
        self.prompts = 0  # completed
        self.prefilled_tokens = 0
        self.context_peak_tokens = 0

    def step(self, inputs: dict[str, Any]) -> tuple[int, int, int, IntArray | None]:
        """A step's prompt tokens, decoding rows, their context, and what its rows may still get.

        ``inputs`` are those of ``ExecutorBase.forward_async``. None in the last place: a chunk of a
        prompt that is not its last, which gives no token.
        """
        prefill, delta = inputs["inputs"], inputs["delta"]
        if delta is not None:
            self.left, self.context = self.left[delta.indice_cpu], self.context[delta.indice_cpu]
        if prefill is not None:
            return self._prefill(prefill, inputs["stopping_criteria"])
        rows, context = len(self.left), int(self.context.sum())
        self.left, self.context = self.left - 1, self.context + 1
        self.context_peak_tokens = max(self.context_peak_tokens, context)
        return 0, rows, context, self.left

    def _prefill(self, prefill: Any, stopping: Any) -> tuple[int, int, int, IntArray | None]:
        lengths = prefill.seq_length.numpy()
        tokens = int(lengths.sum())
        self.prefilled_tokens += tokens
        if prefill.is_chunk and not prefill.is_last_chunk:
            return tokens, 0, 0, None
        self.prompts += len(lengths)
        left = stopping.num_appendable_ids.numpy().astype(np.int64) - 1
        self.left = np.concatenate([self.left, left])
        context = lengths + prefill.history_lengths.numpy()
        self.context = np.concatenate([self.context, context])
        return tokens, 0, 0, left
