"""Rewriting the body of an OpenAI request: what a client may say, what the engine is told.

All functions are pure and raise ``InputError`` for what must become HTTP 400. Whatever a client
sends, the text that is predicted on and logged is bounded: see ``_prompts``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.slo import Slo, SloTable, parse_slo
from lengthwise.predictor.features.request_text import text_of_request
from lengthwise.predictor.features.scan import shortened
from lengthwise.scheduler.vllm_adapter.wire import Hints, Prediction, clipped, parse_tenant

OSL_LIMIT = 10_000_000
MOST_PROMPTS = 64  # so many of a request's prompts speak for its length
_SERVER_ONLY_PREFIXES = ("pred_", "lw_")


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """A request body understood: its SLO, its prompts as text, the client's length hint."""

    body: dict[str, Any]
    xargs: dict[str, Any]
    slo: Slo
    prompts: list[str]
    osl: float | None
    max_tokens: int | None
    tenant: str | None


def parse_body(raw: bytes, headers: Mapping[str, str], table: SloTable) -> ParsedBody | None:
    """The body understood; None when it is not a JSON object (vLLM then says so itself).

    ``headers`` have lower-case names. Raises InputError for a malformed SLO, hint, tenant or
    ``vllm_xargs``, for an empty prompt, and for nesting beyond Python's depth.
    """
    with _refusing_depth():
        return _parsed(raw, headers, table)


def _parsed(raw: bytes, headers: Mapping[str, str], table: SloTable) -> ParsedBody | None:
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    xargs = body.get("vllm_xargs")
    if xargs is None:
        xargs = {}
    if not isinstance(xargs, dict):
        raise InputError(f"vllm_xargs must be an object, got {shown(xargs)}")
    if "messages" in body:
        empty, prompt_field = body["messages"] == [], "messages"
    else:
        empty, prompt_field = body.get("prompt") in ("", [], [""]), "prompt"
    if empty:
        raise InputError(f"{prompt_field} must not be empty, got {shown(body[prompt_field])}")
    slo = parse_slo(xargs, headers, table)
    kept = {key: value for key, value in xargs.items() if not key.startswith(_SERVER_ONLY_PREFIXES)}
    tenant = parse_tenant(kept, headers)
    osl = _osl(kept.pop("osl", None))
    return ParsedBody(body, kept, slo, _prompts(body), osl, _max_tokens(body), tenant)


def hints_of(
    parsed: ParsedBody,
    prediction: Prediction | None,
    shadow: Prediction | None = None,
    with_prompt: bool = False,
) -> Hints:
    """What the engine is to know of the request."""
    hints = Hints(parsed.slo, parsed.tenant)
    if prediction is not None:
        features = prediction.features
        hints = replace(
            hints,
            quantiles=tuple(clipped(prediction.quantiles, parsed.max_tokens)),
            version=prediction.version,
            features=None if features is None else tuple(features),
            contract=None if features is None else prediction.contract,
        )
    if shadow is not None:
        said = tuple(clipped(shadow.quantiles, parsed.max_tokens))
        hints = replace(hints, shadow=said, shadow_version=shadow.version)
    if with_prompt and parsed.prompts:
        hints = replace(hints, prompt="\n".join(parsed.prompts))
    return hints


def encode_body(parsed: ParsedBody, hints: Hints) -> bytes:
    """The body for vLLM: the client's, with the hints among its ``vllm_xargs``."""
    xargs = parsed.xargs | hints.to_xargs()
    with _refusing_depth():
        return json.dumps(parsed.body | {"vllm_xargs": xargs}).encode()


@contextmanager
def _refusing_depth() -> Iterator[None]:
    """Reading, showing and writing a nest take a frame a level, each a few more than the last."""
    try:
        yield
    except RecursionError:
        raise InputError("the request body is nested too deeply") from None


def _prompts(body: dict[str, Any]) -> list[str]:
    """The first MOST_PROMPTS texts, each cut as the predictor would, without lone surrogates."""
    prompt = body.get("prompt")
    if "messages" not in body and isinstance(prompt, list):
        texts = [part for part in prompt[:MOST_PROMPTS] if isinstance(part, str)]
    else:
        text = text_of_request(body)
        texts = [text] if text else []
    return [shortened(text).encode("utf-8", "replace").decode() for text in texts]


def _max_tokens(body: dict[str, Any]) -> int | None:
    """The tighter of the two names of the limit; a malformed one is left for vLLM to refuse."""
    given = [body.get("max_tokens"), body.get("max_completion_tokens")]
    limits = [n for n in given if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    return min(limits, default=None)


def _osl(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= OSL_LIMIT:
        raise InputError(
            f"osl must be a number of tokens from 1 to {OSL_LIMIT}, got {shown(value)}"
        )
    return float(value)
