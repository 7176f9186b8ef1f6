"""The beginning of an answer, so many tokens of it, cut out of its text."""

from __future__ import annotations

from lengthwise.data.tokens import Counter

OPENING_TOKENS = (16, 48)  # after so many tokens of an answer its length is estimated anew
_CHARACTERS_A_TOKEN = 8  # more than usual: the first look holds the opening whole


def opening_of(answer: str, tokens: int, count: Counter) -> str:
    """The beginning of an answer that is about ``tokens`` long, by the density of its tokens there.

    ``count`` counts a text's tokens. A shorter answer is given whole.
    """
    characters = _CHARACTERS_A_TOKEN * tokens
    while True:
        head = answer[:characters]
        counted = count(head)
        if counted >= tokens:
            return cut_to(head, counted, tokens)
        if len(head) == len(answer):
            return answer
        characters *= 2


def cut_to(text: str, counted: int, tokens: int) -> str:
    """The first ``tokens`` of the ``counted`` tokens that a text has, to within one or two."""
    if counted <= tokens:
        return text
    return text[: max(1, round(len(text) * tokens / counted))]
