"""The built-in corpus: prompts from templates, lengths from what they ask, so that everything
runs with no data at hand. Its figures say nothing about a real model; it is labelled `synthetic`.

Length of an answer: round(median x exp(sigma z)), z standard normal; with the template's `runaway`
probability the answer wanders instead and is longer by a Pareto factor. Answers that would pass
CAP_TOKENS are cut there and marked `censored`.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random

from lengthwise.data.errors import InputError
from lengthwise.data.sources.synthetic.templates import TASKS, Draft
from lengthwise.data.table import PromptTable, make_table, prompt_group, prompt_id, texts_sha256
from lengthwise.data.tokens import DEFAULT_TOKENIZER, count_tokens

DEFAULT_ROWS = 6000
CAP_TOKENS = 4096
_RUNAWAY_SHAPE = 0.9  # heavy: about one runaway in five reaches the cap
_RUNAWAY_LEAST = 3.0


def synthetic_table(rows: int = DEFAULT_ROWS, seed: int = 0) -> PromptTable:
    """`rows` prompts over five classes with drawn answer lengths; same arguments, same table."""
    if rows < 1:
        raise InputError(f"rows must be at least 1, got {rows}")
    table = _build(rows, seed)
    copy = table.copy()
    copy.attrs = dict(table.attrs)
    return copy


@lru_cache(maxsize=4)
def _build(rows: int, seed: int) -> PromptTable:
    rng = Random(seed)
    makers = [(c, make, share) for c, tasks in TASKS.items() for make, share in tasks]
    drawn = rng.choices(makers, [share for *_, share in makers], k=rows)
    drafts: list[tuple[str, Draft]] = [(slo_class, make(rng)) for slo_class, make, _ in drawn]
    lengths = [_answer_tokens(draft, rng) for _, draft in drafts]
    prompts = [draft.prompt for _, draft in drafts]
    return make_table(
        {
            "id": [prompt_id(prompt) for prompt in prompts],
            "group": [prompt_group(f"{d.task} {d.subject}") for _, d in drafts],
            "source": ["synthetic"] * rows,
            "task": [draft.task for _, draft in drafts],
            "slo_class": [slo_class for slo_class, _ in drafts],
            "model": ["synthetic"] * rows,
            "prompt_tokens": count_tokens(prompts).tolist(),
            "output_tokens": [min(tokens, CAP_TOKENS) for tokens in lengths],
            "prompt": prompts,
            "censored": [tokens > CAP_TOKENS for tokens in lengths],
            "license": ["Apache-2.0"] * rows,
        },
        source_label="synthetic",
        data_sha256=texts_sha256([seed, *prompts, *lengths]),
        tokenizer=DEFAULT_TOKENIZER,
    )


def _answer_tokens(draft: Draft, rng: Random) -> int:
    tokens = draft.median_tokens * rng.lognormvariate(0.0, draft.sigma)
    if rng.random() < draft.runaway:
        tokens *= _RUNAWAY_LEAST * rng.paretovariate(_RUNAWAY_SHAPE)
    return max(2, round(min(tokens, 1e6)))
