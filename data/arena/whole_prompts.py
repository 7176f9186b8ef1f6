"""Prompts written out in full: what stands before a request's own words, of the right length.

A workload says that 2,200 shared tokens, or a document of 9,000, come before the words that are
in `prompt`. A real engine must be sent them. They are plain words of one token each, a shared
beginning's the same for all who share it.
"""

from __future__ import annotations

from random import Random

from lengthwise.data.workload import WorkloadRequest

# one token each, with the space before them, in Tekken and in the tiny model's part of it
_TEXT = (
    "time year people way day man thing woman life child world school state family "
    "group country problem hand part place case week company system program question work "
    "government number night point home water room mother area money story fact month lot "
    "right study book job word business issue side kind head house service friend father "
    "power game line end member law car city community name team idea "
    "body information back parent face others level door health person art war "
    "history"
)
_WORDS = _TEXT.split()


def whole_prompt(request: WorkloadRequest, number: int) -> str | None:
    """The request's prompt with all of its `prompt_tokens`, give or take the seams.

    `number` tells requests apart: two never share more than their prefix. The prompt itself where
    it is the whole already, None where the request has no text.
    """
    if request.prompt is None or request.text_tokens is None:
        return request.prompt
    prefix_tokens = request.prefix_tokens or 0
    own = max(request.prompt_tokens - prefix_tokens - request.text_tokens, 0)
    before = [words(f"prefix {request.prefix}", prefix_tokens), words(f"request {number}", own)]
    return "\n\n".join(part for part in (*before, request.prompt) if part)


def words(seed: str, count: int) -> str:
    """`count` words of one token each; the same for the same seed."""
    rng = Random(seed)
    return "".join(f" {rng.choice(_WORDS)}" for _ in range(count))
