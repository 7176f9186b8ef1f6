"""Columns of a prompt that offers tools: what a call would have to spell out, and from what.

A call names one tool and gives its required arguments, so its length follows the names it must
write and the values found in what was asked; the tool that shares most words with it is taken for
the one to be called (`tool_scan` finds them).

Counts and bytes enter as log(1 + x), shares as they are; all columns are 0 without tools.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from lengthwise.data.arrays import njit
from lengthwise.predictor.features.scan import NUMBER, PUNCTUATION, WORD, word_hash
from lengthwise.predictor.features.tool_scan import (
    COMMA,
    COMPOUND,
    DESCRIPTION,
    ENUM,
    FIELDS,
    HITS,
    NAME,
    NAME_HITS,
    NEED,
    NEED_BYTES,
    OPTIONAL,
    QUOTE,
    SHORTEST,
    STRINGS,
    TYPES,
    mark_objects,
    names_parameters,
    slot_of,
    stem_hash,
    tool_rows,
)

_Columns = namedtuple(
    "_Columns",
    "COUNT BYTES NAME_BYTES REQUIRED REQUIRED_MOST REQUIRED_BYTES REQUIRED_BYTES_MOST OPTIONAL "
    "ENUM_VALUES LONGEST_DESCRIPTION NAMED LIKELY_NAME_BYTES LIKELY_REQUIRED "
    "LIKELY_REQUIRED_BYTES LIKELY_OPTIONAL LIKELY_ENUM_VALUES LIKELY_WORDS LIKELY_LEAD "
    "ASKED_WORDS ASKED_NUMBERS ASKED_QUOTED ASKED_CAPITALS ASKED_JOINS ASKED_COMMAS "
    "ASKED_SENTENCES VALUE_BYTES CALL_BYTES STRING_SHARE COMPOUND_SHARE LIKELY_STRING_SHARE "
    "LIKELY_COMPOUND_SHARE",
)
T = _Columns(*range(len(_Columns._fields)))
TOOL_NAMES: tuple[str, ...] = tuple(f"tools_{name.lower()}" for name in T._fields)

_MOST_TOOLS = 64
_MOST_ASKED = 512  # words of what was asked that are remembered
_SLOTS = 2048
_NAME_WEIGHT = 3.0
_LONGEST_QUOTED = 80
_JOINS = np.array([word_hash(w) for w in ("and", "also", "then", "both", "each")])


@njit
def _is_letter(byte: int) -> bool:
    return 97 <= byte <= 122 or 65 <= byte <= 90 or byte >= 128


@njit
def _read_asked(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    depths: np.ndarray,
    table: np.ndarray,
    out: np.ndarray,
) -> None:
    """What stands outside of objects: counts into `out`, stems of its words into `table`."""
    remembered = 0
    fresh = True  # a capital that begins a sentence is no name
    opened, mark = -1, 0  # where a quotation began, and by which mark
    for t in range(kinds.size):
        width = stops[t] - starts[t]
        if depths[t] != 0:
            out[T.BYTES] += width
            opened = -1
            continue
        byte = text[starts[t]]
        if kinds[t] == WORD:
            out[T.ASKED_WORDS] += 1
            if 65 <= byte <= 90 and not fresh:
                out[T.ASKED_CAPITALS] += 1
                if opened < 0:
                    out[T.VALUE_BYTES] += width
            fresh = False
            for join in _JOINS:
                out[T.ASKED_JOINS] += hashes[t] == join
            if width >= SHORTEST and remembered < _MOST_ASKED:
                h = stem_hash(text, starts[t], stops[t])
                at = slot_of(table, h)
                if table[at] == 0:
                    table[at] = h
                    remembered += 1
        elif kinds[t] == NUMBER:
            out[T.ASKED_NUMBERS] += 1
            if opened < 0:
                out[T.VALUE_BYTES] += width
            fresh = False
        elif kinds[t] == PUNCTUATION:
            if byte == COMMA:
                out[T.ASKED_COMMAS] += 1
            elif byte == 46 or byte == 63 or byte == 33:
                if starts[t] + 1 >= text.size or text[starts[t] + 1] <= 32:
                    out[T.ASKED_SENTENCES] += 1
                    fresh = True
            elif byte == QUOTE or byte == 39:
                inside = starts[t] + 1 < text.size and text[starts[t] + 1] > 32
                after = starts[t] > 0 and text[starts[t] - 1] > 32
                if opened >= 0 and byte == mark:
                    ends = starts[t] + 1 >= text.size or not _is_letter(text[starts[t] + 1])
                    if starts[t] - opened > _LONGEST_QUOTED:
                        opened = -1
                    elif ends:
                        out[T.ASKED_QUOTED] += 1
                        out[T.VALUE_BYTES] += starts[t] - opened
                        opened = -1
                elif opened < 0 and inside and not (after and _is_letter(text[starts[t] - 1])):
                    opened, mark = starts[t] + 1, byte
        else:
            fresh = True


@njit
def read_tools(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill `out`, (len(TOOL_NAMES),) float64, from one prompt's bytes and tokens."""
    out[:] = 0.0
    if not names_parameters(hashes):
        return
    depths = np.empty(kinds.size, np.int32)
    if mark_objects(text, kinds, hashes, starts, stops, depths) == 0:
        return
    table = np.zeros(_SLOTS, np.uint64)
    _read_asked(text, kinds, hashes, starts, stops, depths, table, out)
    tools = np.zeros((_MOST_TOOLS, FIELDS))
    count = tool_rows(text, kinds, hashes, starts, stops, depths, table, tools)
    if count == 0:
        out[:] = 0.0
        return
    best, second, likely = -1.0, -1.0, 0
    types = 0.0
    for tool in range(count):
        row = tools[tool]
        row[OPTIONAL] = max(0.0, row[OPTIONAL] - row[NEED])
        out[T.NAME_BYTES] += row[NAME] / count
        out[T.REQUIRED] += row[NEED] / count
        out[T.REQUIRED_BYTES] += row[NEED_BYTES] / count
        out[T.OPTIONAL] += row[OPTIONAL] / count
        out[T.ENUM_VALUES] += row[ENUM] / count
        out[T.REQUIRED_MOST] = max(out[T.REQUIRED_MOST], row[NEED])
        out[T.REQUIRED_BYTES_MOST] = max(out[T.REQUIRED_BYTES_MOST], row[NEED_BYTES])
        out[T.LONGEST_DESCRIPTION] = max(out[T.LONGEST_DESCRIPTION], row[DESCRIPTION])
        out[T.STRING_SHARE] += row[STRINGS]
        out[T.COMPOUND_SHARE] += row[COMPOUND]
        types += row[TYPES]
        out[T.NAMED] += row[NAME_HITS] > 0
        shared = _NAME_WEIGHT * row[NAME_HITS] + row[HITS]
        if shared > best:
            best, second, likely = shared, best, tool
        elif shared > second:
            second = shared
    row = tools[likely]
    out[T.COUNT] = count
    out[T.LIKELY_NAME_BYTES] = row[NAME]
    out[T.LIKELY_REQUIRED] = row[NEED]
    out[T.LIKELY_REQUIRED_BYTES] = row[NEED_BYTES]
    out[T.LIKELY_OPTIONAL] = row[OPTIONAL]
    out[T.LIKELY_ENUM_VALUES] = row[ENUM]
    out[T.LIKELY_WORDS] = best
    out[T.LIKELY_LEAD] = best - max(second, 0.0)
    out[T.CALL_BYTES] = row[NAME] + row[NEED_BYTES] + out[T.VALUE_BYTES]
    for column in range(T.STRING_SHARE):
        out[column] = np.log1p(out[column])
    out[T.STRING_SHARE] /= max(types, 1.0)
    out[T.COMPOUND_SHARE] /= max(types, 1.0)
    own = max(row[TYPES], 1.0)
    out[T.LIKELY_STRING_SHARE] = row[STRINGS] / own
    out[T.LIKELY_COMPOUND_SHARE] = row[COMPOUND] / own
