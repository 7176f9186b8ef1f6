"""Reading the body of a generating request: what a client may say, what the engine is told.

All functions are pure and raise ``InputError`` for what must become HTTP 400: only a wrong value
of a key of our own. What is wrong otherwise is vLLM's to refuse. Whatever a client sends, the text
that is predicted on and logged is bounded: see ``_shortened``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.slo import Slo, SloTable, parse_number, parse_slo
from lengthwise.predictor.features.scan import shortened
from lengthwise.scheduler.serving.api.body.large_body import (
    WHOLE_BYTES,
    Span,
    in_utf8,
    read_large,
    spliced,
)
from lengthwise.scheduler.serving.api.body.readers import (
    History,
    Reader,
    RequestParts,
    is_true,
    no_history,
)
from lengthwise.scheduler.serving.wire.answer_length import Prediction, fixed_tokens, rounded
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.serving.wire.seal import PUBLIC_KEYS, is_private
from lengthwise.scheduler.serving.wire.tenant_name import parse_tenant

OSL_LIMIT = 10_000_000
MOST_PROMPTS = 4096  # of one request; those beyond have no estimate of their own
MOST_INLINE_BYTES = 32 * 1024  # a larger body is read in parts, and not on the event loop
_STOPS = ("stop", "stop_token_ids", "stop_sequences", "repetition_detection")


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request understood.

    ``prompts`` are the texts of its sequences, None of one without text; ``osl`` is the client's
    hint at their length, ``fixed_tokens`` the length when it leaves no choice; ``raw`` is the body
    to pass on: the client's own bytes, unless keys of ours had to go. ``lacks_history``: the text
    of an earlier response goes before, which is not known.
    """

    raw: bytes | bytearray
    slo: Slo
    tenant: str | None
    prompts: tuple[str | None, ...] = ()
    osl: float | None = None
    max_tokens: int | None = None
    fixed_tokens: int | None = None
    is_open: bool = False
    in_background: bool = False
    lacks_history: bool = False

    @property
    def characters(self) -> int:
        """Of all prompts together, as far as they are text."""
        return sum(len(text) for text in self.prompts if text is not None)


def parse_headers(headers: Mapping[str, str], table: SloTable) -> ParsedRequest:
    """What the headers alone (lower-case names) say; the body is not looked at."""
    slo, tenant = parse_slo({}, headers, table), parse_tenant({}, headers)
    return ParsedRequest(b"", slo, tenant, is_open=True)


def parse_body(
    raw: bytes | bytearray,
    headers: Mapping[str, str],
    table: SloTable,
    reader: Reader,
    history: History = no_history,
) -> ParsedRequest:
    """The request, as ``reader`` finds its parts; ``headers`` have lower-case names.

    Raises InputError for a malformed SLO, tenant or length hint. A body that is no JSON object, or
    nested beyond Python's depth, is passed on as it came: vLLM refuses it.
    """
    body, place, read = _read(raw)
    if body is None:
        return replace(parse_headers(headers, table), raw=raw, is_open=False)
    try:
        parts = reader(body, history)
        passed_on = _without_ours(read, body, place)
    except RecursionError:
        raise InputError("the request body is nested too deeply") from None
    said = parts.xargs if isinstance(parts.xargs, Mapping) else {}
    own = {key: value for key, value in said.items() if key in PUBLIC_KEYS}
    return ParsedRequest(
        raw if passed_on is read else passed_on,
        parse_slo(own, headers, table),
        parse_tenant(own, headers),
        tuple(map(_shortened, parts.prompts[:MOST_PROMPTS])),
        _osl(own.get("osl")),
        _limit(parts),
        _fixed(parts),
        parts.is_open,
        is_true(body.get("background")),
        parts.earlier_id is not None,
    )


def hints_of(
    parsed: ParsedRequest,
    prediction: Prediction | None,
    shadow: Prediction | None = None,
    *,
    textless: bool = False,
    downgraded: bool = False,
) -> Hints:
    """What the engine is to know of one of the request's sequences."""
    features = None if prediction is None else prediction.features
    return Hints(
        parsed.slo,
        parsed.tenant,
        quantiles=None if prediction is None else rounded(prediction.quantiles),
        version=None if prediction is None else prediction.version,
        features=None if features is None else tuple(features.tolist()),
        contract=None if prediction is None or features is None else prediction.contract,
        shadow=None if shadow is None else rounded(shadow.quantiles),
        shadow_version=None if shadow is None else shadow.version,
        downgraded=downgraded,
        textless=textless,
    )


def _read(
    raw: bytes | bytearray,
) -> tuple[Mapping[str, Any] | None, Span | None, bytes | bytearray]:
    """The body if it is an object, where in a large one its ``vllm_xargs`` stand, and in what: the
    body itself, or that in UTF-8."""
    try:
        if len(raw) > MOST_INLINE_BYTES:
            read = in_utf8(raw)
            large = read_large(read)
            if large is None:
                return None, None, raw
            return large.body, large.places.get("vllm_xargs"), read
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None, None, raw
    return (body if isinstance(body, dict) else None), None, raw


def _without_ours(
    raw: bytes | bytearray, body: Mapping[str, Any], place: Span | None
) -> bytes | bytearray:
    """The body without private keys and empty ones of ours; as it came where there are none.

    vLLM would refuse a null among its ``vllm_xargs``, which to us means absent.
    """
    xargs = body.get("vllm_xargs")
    if not isinstance(xargs, dict):
        return raw
    kept = {key: value for key, value in xargs.items() if not _is_to_go(key, value)}
    if len(kept) == len(xargs):
        return raw
    if place is None:
        return json.dumps({**body, "vllm_xargs": kept}).encode()
    if place[1] - place[0] > WHOLE_BYTES:
        return raw  # not all of them were read
    return spliced(raw, place, json.dumps(kept).encode())


def _is_to_go(key: str, value: Any) -> bool:
    empty = value is None or (isinstance(value, str) and not value.strip())
    return is_private(key) or (key in PUBLIC_KEYS and empty)


def _shortened(text: str | None) -> str | None:
    """The text as the predictor would cut it, without lone surrogates."""
    if text is None:
        return None
    text = shortened(text)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _limit(parts: RequestParts) -> int | None:
    """The first of the limit's names that is given; a malformed one is left for vLLM to refuse."""
    given = (parts.sampling.get(name) for name in parts.limits)
    limit = next((value for value in given if value is not None), None)
    is_limit = isinstance(limit, int) and not isinstance(limit, bool) and limit > 0
    return limit if is_limit else None


def _fixed(parts: RequestParts) -> int | None:
    sampling = parts.sampling
    may_stop = any(sampling.get(name) for name in _STOPS)
    return fixed_tokens(
        _limit(parts), sampling.get("min_tokens"), sampling.get("ignore_eos"), may_stop
    )


def _osl(value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    tokens = parse_number(value)
    if not 1 <= tokens <= OSL_LIMIT:
        raise InputError(
            f"osl must be a number of tokens from 1 to {OSL_LIMIT}, got {shown(value)}"
        )
    return tokens
