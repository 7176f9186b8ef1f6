"""A large JSON body read in parts, so that the event loop never stands still for it.

Python's JSON reader keeps the interpreter for a whole document, and so does freeing what it made:
on whatever thread, the event loop waits. So a compiled pass that needs no interpreter finds where
members and items begin and end, and only what a reader of requests can use of them becomes
objects, a little at a time: the first and last characters of a text (`shortened`), the first and
last items of a list, the members that have a meaning to us wherever in an object they stand. What
is left out is None, or absent.
"""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from lengthwise.predictor.features.scan import HEAD_CHARS, TAIL_CHARS
from lengthwise.scheduler.serving.api.body.json_places import (
    Bytes,
    ends_of_text,
    extent,
    find_parts,
)
from lengthwise.scheduler.serving.wire.seal import PUBLIC_KEYS

Span = tuple[int, int]

_FIRST, _LAST = 4096, 1024  # items and members that are looked at, of however many there are
WHOLE_BYTES = 16 * 1024  # a value of this size is read by one call, whole
_PIECE_BYTES = 256 * 1024  # what is copied at once
_LONGEST_CHARACTER = 12  # bytes of one character: two escapes, \ud83d\ude00
_HEAD_BYTES, _TAIL_BYTES = HEAD_CHARS * _LONGEST_CHARACTER, TAIL_CHARS * _LONGEST_CHARACTER
_BATCH_BYTES = 1024 * 1024  # of a list of conversations
_MOST_DEPTH = 6  # of what is read in parts: body, messages, message, content, part, its input
_KEY_BYTES = 256  # a name of ours with every letter written as an escape has 140
_UNKNOWN_BYTES = 256  # a member that no reader asks for is read if it is as small as a number
_BREATH_S = 0.001  # others get the interpreter as often as this

_TEXTS = frozenset(("prompt", "messages", "input", "instructions", "system", "tools"))
_OBJECTS = frozenset(("vllm_xargs", "sampling_params", "prompt_embeds"))
_LIMITS = frozenset(
    (
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "ignore_eos"),
        *("stop", "stop_token_ids", "stop_sequences", "repetition_detection", "use_beam_search"),
    )
)
_OF_MESSAGES = frozenset(
    (
        *("role", "content", "type", "text", "tool_calls", "function", "name", "arguments"),
        *("output", "tool_use_id"),
    )
)
NAMED = (
    _TEXTS
    | _OBJECTS
    | _LIMITS
    | _OF_MESSAGES
    | PUBLIC_KEYS
    | {"extra_args", "background", "previous_response_id"}
)
"""Members that are read wherever they stand, and before others where not all can be."""
_NAMES = np.array(sorted(name.encode() for name in NAMED)).view(np.uint8).reshape(len(NAMED), -1)
# of images, sound and files, which nobody predicts on
_NO_TEXT = frozenset(("url", "data", "image_url", "file_data", "image", "audio", "video", "file"))


@dataclass(frozen=True, slots=True)
class LargeBody:
    """``body`` reads as the whole would; ``places`` says where its members' values stand."""

    body: Mapping[str, Any]
    places: Mapping[str, Span]


def read_large(raw: bytes | bytearray) -> LargeBody | None:
    """The body, or None where it is no JSON object in UTF-8.

    Raises RecursionError for what is nested beyond Python's depth. Faults in the parts that are
    left out are not found: they are the server's to refuse.
    """
    text = np.frombuffer(raw, np.uint8)
    text.flags.writeable = False  # one compiled version for bytes and bytearrays
    begin = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    start, stop = extent(text, begin)
    if start < 0 or raw[start] != ord("{"):
        return None
    try:
        reading = _Reading(raw, text)
        places = reading.places(start, stop)
        body = {key: reading.member(key, *place) for key, place in places.items()}
    except ValueError:
        return None
    return LargeBody(body, places)


def in_utf8(raw: bytes | bytearray) -> bytes | bytearray:
    """The body itself, or what it says in UTF-8 where it came in UTF-16 or UTF-32, a piece at a
    time.

    Raises ValueError for what is none of them.
    """
    encoding = json.detect_encoding(raw[:4])
    if encoding.startswith("utf-8"):
        return raw
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    made = bytearray()
    for piece in pieces(raw):
        made += decoder.decode(piece).encode("utf-8", "surrogatepass")
        time.sleep(0)
    made += decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    return made


def compile_passes() -> None:
    """Have the compiled passes at hand before a request waits for them."""
    read_large(json.dumps({"prompt": "x" * (WHOLE_BYTES + 1)}).encode())


def pieces(raw: bytes | bytearray, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes from start to stop in order, at least one piece of them: copied at once they would
    keep everybody waiting."""
    view = memoryview(raw)[start:stop]
    for begin in range(0, max(1, len(view)), _PIECE_BYTES):
        yield bytes(view[begin : begin + _PIECE_BYTES])


def spliced(raw: bytes | bytearray, place: Span, value: bytes) -> bytearray:
    """The body with another value in this place."""
    start, stop = place
    made = bytearray(len(raw) - (stop - start) + len(value))
    at = 0
    for part in chain(pieces(raw, 0, start), (value,), pieces(raw, stop)):
        made[at : at + len(part)] = part
        at += len(part)
        time.sleep(0)
    return made


class _Reading:
    """One pass over one body."""

    def __init__(self, raw: bytes | bytearray, text: Bytes) -> None:
        self._raw = raw
        self._text = text
        self._read_bytes = 0
        self._breath_s = time.perf_counter()

    def places(self, start: int, stop: int) -> dict[str, Span]:
        """Where the value of each member of an object stands; of equal keys the last one's."""
        return {
            self._whole(first, last): (begin, end)
            for first, last, begin, end in self._parts(start, stop)
            if last - first <= _KEY_BYTES
        }

    def member(self, key: str, start: int, stop: int) -> Any:
        """The value of a member of the body itself."""
        if key in _TEXTS:
            if key == "prompt" and self._raw[start] == ord("["):
                return [self._prompt(begin, end) for _, _, begin, end in self._parts(start, stop)]
            batch = self._raw[start + 1 : start + 16].lstrip()[:1] == b"["
            return self._value(start, stop, _MOST_DEPTH, _BATCH_BYTES if batch else _HEAD_BYTES)
        if key in _OBJECTS or stop - start <= _UNKNOWN_BYTES:
            return self._value(start, stop, _MOST_DEPTH, _HEAD_BYTES)
        return None

    def _prompt(self, start: int, stop: int) -> Any:
        """One of a list of prompts, each of which is read: a text, or a token."""
        return None if self._raw[start] in b"[{" else self._value(start, stop, 1, _HEAD_BYTES)

    def _value(self, start: int, stop: int, depth: int, left_bytes: int, key: str = "") -> Any:
        kind = self._raw[start]
        if kind == ord('"') and key in _NO_TEXT:
            return ""
        if stop - start <= WHOLE_BYTES:
            return self._whole(start, stop)
        if kind == ord('"'):
            return self._ends(start + 1, stop - 1)
        if kind == ord("[") and depth:
            return self._items(start, stop, depth - 1, min(left_bytes, _HEAD_BYTES))
        if kind == ord("{") and depth:
            return self._members(start, stop, depth - 1, left_bytes)
        return None

    def _items(self, start: int, stop: int, depth: int, left_bytes: int) -> list[Any]:
        """The items of a list, from both of its ends."""
        parts = self._parts(start, stop)
        items: list[Any] = [None] * len(parts)

        def fill(order: range, left: int) -> int:
            for index in order:
                if left <= 0:
                    return index
                before = self._read_bytes
                _, _, begin, end = parts[index]
                items[index] = self._value(begin, end, depth, left)
                left -= self._read_bytes - before
            return len(parts)

        at = fill(range(len(parts)), left_bytes)
        fill(range(len(parts) - 1, at - 1, -1), min(left_bytes, _TAIL_BYTES))
        return items

    def _members(self, start: int, stop: int, depth: int, left_bytes: int) -> dict[str, Any]:
        places = self.places(start, stop)
        members: dict[str, Any] = {}
        for key in sorted(places, key=lambda name: name not in NAMED):
            if left_bytes <= 0:
                break
            before = self._read_bytes
            members[key] = self._value(*places[key], depth, left_bytes, key)
            left_bytes -= self._read_bytes - before
        return {key: members[key] for key in places if key in members}

    def _ends(self, start: int, stop: int) -> str:
        """The text between these quotes, as `shortened` leaves it."""
        head, tail = ends_of_text(self._text, start, stop, HEAD_CHARS, TAIL_CHARS)
        if head < 0:
            return self._text_of(start, stop)
        return self._text_of(start, head) + "\n" + self._text_of(tail, stop)

    def _text_of(self, start: int, stop: int) -> str:
        self._note(stop - start)
        return str(json.loads(b'"' + self._raw[start:stop] + b'"'))

    def _whole(self, start: int, stop: int) -> Any:
        self._note(stop - start)
        return json.loads(self._raw[start:stop])

    def _parts(self, start: int, stop: int) -> Sequence[Sequence[int]]:
        """Start and stop of key (an object's) and value of each part; ValueError if malformed."""
        spans = np.empty((_FIRST + _LAST, 4), np.int64)
        named = np.full((len(_NAMES), 4), -1, np.int64)
        count = find_parts(self._text, start, stop, _FIRST, spans, _NAMES, named)
        if count < 0:
            raise ValueError("malformed JSON")
        if count > len(spans):
            turned = np.roll(spans[_FIRST:], -((count - _FIRST) % _LAST), axis=0)
            between = named[named[:, 0] >= 0]
            spans = np.concatenate((spans[:_FIRST], between, turned))
        else:
            spans = spans[: max(0, count)]
        found: list[list[int]] = spans.tolist()
        return found

    def _note(self, size_bytes: int) -> None:
        """Count what is read, and let others have the interpreter now and then."""
        self._read_bytes += size_bytes
        if time.perf_counter() - self._breath_s > _BREATH_S:
            time.sleep(0)
            self._breath_s = time.perf_counter()
