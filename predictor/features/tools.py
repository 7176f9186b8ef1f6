"""Columns of a prompt that offers tools: what a call would have to spell out, and from what.

A tool is a JSON object with the keys "name" and "parameters", as OpenAI-compatible servers render
it. What is outside of such objects is what was asked. A call names one tool and gives its required
arguments, so its length follows the names it must write and the values found in what was asked;
the tool that shares most words with it is taken for the one to be called.

Counts and bytes enter as log(1 + x), shares as they are; all columns are 0 without tools.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from lengthwise.data.arrays import njit
from lengthwise.predictor.features.scan import (
    FNV_OFFSET,
    FNV_PRIME,
    NUMBER,
    PUNCTUATION,
    WORD,
    word_hash,
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

# one tool's numbers, a row of the table that `_read_tools` fills
_NAME, _NEED, _NEED_BYTES, _OPTIONAL, _ENUM, _DESCRIPTION = 0, 1, 2, 3, 4, 5
_TYPES, _STRINGS, _COMPOUND, _HITS, _NAME_HITS, _FIELDS = 6, 7, 8, 9, 10, 11

_MOST_TOOLS = 64
_MOST_ASKED = 512  # words of what was asked that are remembered
_SLOTS = 2048
_STEM_BYTES = 5  # "calculate", "Calculates" and "calculation" share a stem
_SHORTEST = 4  # letters of a word that may tell tools apart
_NAME_WEIGHT = 3.0
_QUOTE, _BACKSLASH, _COLON, _COMMA = 34, 92, 58, 44
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 123, 125, 91, 93
_LONGEST_QUOTED = 80

_KEY_NAME = word_hash("name")
_KEY_PARAMETERS = word_hash("parameters")
_KEY_PROPERTIES = word_hash("properties")
_KEY_REQUIRED = word_hash("required")
_KEY_TYPE = word_hash("type")
_KEY_ENUM = word_hash("enum")
_KEY_DESCRIPTION = word_hash("description")
_STRING = word_hash("string")
_LISTS = np.array([word_hash(w) for w in ("array", "list", "tuple", "dict", "object")])
_JOINS = np.array([word_hash(w) for w in ("and", "also", "then", "both", "each")])
_TOP = np.uint64(40)


@njit
def _is_letter(byte: int) -> bool:
    return 97 <= byte <= 122 or 65 <= byte <= 90 or byte >= 128


@njit
def _is_key(
    text: np.ndarray, kinds: np.ndarray, starts: np.ndarray, stops: np.ndarray, t: int
) -> bool:
    """Whether token t is a word in double quotes with a colon behind."""
    return (
        kinds[t] == WORD
        and starts[t] > 0
        and text[starts[t] - 1] == _QUOTE
        and t + 2 < kinds.size
        and text[starts[t + 1]] == _QUOTE
        and starts[t + 1] == stops[t]
        and text[starts[t + 2]] == _COLON
    )


@njit
def _escaped(text: np.ndarray, at: int) -> bool:
    """Whether an odd number of backslashes stands in front of a byte."""
    before = at
    while before > 0 and text[before - 1] == _BACKSLASH:
        before -= 1
    return (at - before) % 2 == 1


@njit
def _mark_objects(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    depths: np.ndarray,
) -> int:
    """Depth of every token in JSON objects into `depths`, (t,); how many keys "parameters".

    A brace or bracket counts as inside of what it opens or closes; text in double quotes is below
    zero: minus the depth it stands at.
    """
    depth, quoted, found = 0, False, 0
    for t in range(kinds.size):
        byte = text[starts[t]] if kinds[t] == PUNCTUATION else 0
        if depth == 0:
            depths[t] = 0
            begins = byte == _OPEN and t + 2 < kinds.size and text[starts[t + 1]] == _QUOTE
            if begins and _is_key(text, kinds, starts, stops, t + 2):
                depth, quoted = 1, False
                depths[t] = 1
            continue
        depths[t] = -depth if quoted else depth
        if byte == _QUOTE and not (quoted and _escaped(text, starts[t])):
            quoted = not quoted
            depths[t] = depth
        elif quoted:
            if hashes[t] == _KEY_PARAMETERS and _is_key(text, kinds, starts, stops, t):
                found += 1
        elif byte in (_OPEN, _OPEN_LIST):
            depth += 1
            depths[t] = depth
        elif byte in (_CLOSE, _CLOSE_LIST):
            depth -= 1
    return found


@njit
def _stem(text: np.ndarray, start: int, stop: int) -> np.uint64:
    """Hash of a word's first letters in lower case."""
    h = FNV_OFFSET
    for at in range(start, min(stop, start + _STEM_BYTES)):
        letter = text[at] + 32 if 65 <= text[at] <= 90 else text[at]
        h = (h ^ np.uint64(letter)) * FNV_PRIME
    return h | np.uint64(1)  # 0 is an empty slot


@njit
def _slot(table: np.ndarray, h: np.uint64) -> int:
    """Where a hash is in the table, or the empty slot where it would be."""
    at = np.int64((h >> _TOP) & np.uint64(table.size - 1))
    while table[at] != 0 and table[at] != h:
        at = (at + 1) & (table.size - 1)
    return at


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
            if width >= _SHORTEST and remembered < _MOST_ASKED:
                h = _stem(text, starts[t], stops[t])
                at = _slot(table, h)
                if table[at] == 0:
                    table[at] = h
                    remembered += 1
        elif kinds[t] == NUMBER:
            out[T.ASKED_NUMBERS] += 1
            if opened < 0:
                out[T.VALUE_BYTES] += width
            fresh = False
        elif kinds[t] == PUNCTUATION:
            if byte == _COMMA:
                out[T.ASKED_COMMAS] += 1
            elif byte == 46 or byte == 63 or byte == 33:
                if starts[t] + 1 >= text.size or text[starts[t] + 1] <= 32:
                    out[T.ASKED_SENTENCES] += 1
                    fresh = True
            elif byte == _QUOTE or byte == 39:
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
def _match(
    text: np.ndarray,
    start: int,
    stop: int,
    table: np.ndarray,
    seen: np.ndarray,
    tool: int,
) -> int:
    """How many parts of an identifier or word are among what was asked and new for the tool."""
    found = 0
    begin = start
    for at in range(start + 1, stop + 1):
        parted = at == stop or text[at] == 95
        parted = parted or (97 <= text[at - 1] <= 122 and 65 <= text[at] <= 90)
        if parted:
            if at - begin >= _SHORTEST:
                place = _slot(table, _stem(text, begin, at))
                if table[place] != 0 and seen[place] != tool + 1:
                    seen[place] = tool + 1
                    found += 1
            begin = at + 1 if at < stop and text[at] == 95 else at
    return found


@njit
def _quoted_end(
    text: np.ndarray, kinds: np.ndarray, starts: np.ndarray, depths: np.ndarray, t: int
) -> int:
    """The token that closes the quotation whose first token behind the mark is t."""
    while t < kinds.size and depths[t] < 0:
        t += 1
    return min(t, kinds.size - 1)


@njit
def _read_tools(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    depths: np.ndarray,
    table: np.ndarray,
    tools: np.ndarray,
) -> int:
    """A row of numbers for every tool into `tools`; returns how many there are."""
    seen = np.zeros(table.size, np.int32)
    tool = -1  # the tool being read; its row is begun at the name
    level = 0  # depth of its parameters' object, 0 before that
    base = 0  # depth at which its name stood
    properties = False
    t = 0
    while t < kinds.size:
        depth = depths[t]
        if depth == 0:
            t += 1
            continue
        if level > 0 and 0 < depth < level:
            level = 0
        if depth > 0 or not _is_key(text, kinds, starts, stops, t):
            if tool >= 0 and depth < 0 and kinds[t] == WORD:
                tools[tool, _HITS] += _match(text, starts[t], stops[t], table, seen, tool)
            t += 1
            continue
        depth = -depth
        key = hashes[t]
        value = t + 3  # the first token behind the colon
        text_follows = value < kinds.size and text[starts[value]] == _QUOTE
        list_follows = value < kinds.size and text[starts[value]] == _OPEN_LIST
        if level == 0 and key == _KEY_NAME and text_follows:
            if tool + 1 == tools.shape[0]:
                return tool + 1
            tool += 1
            base = depth
            end = _quoted_end(text, kinds, starts, depths, value + 1)
            tools[tool, :] = 0.0
            tools[tool, _NAME] = starts[end] - stops[value]
            for word in range(value + 1, end):
                if kinds[word] == WORD:
                    hits = _match(text, starts[word], stops[word], table, seen, tool)
                    tools[tool, _NAME_HITS] += hits
            t = end
        elif tool >= 0 and level == 0 and key == _KEY_PARAMETERS and depth == base:
            level = depth + 1
            properties = False
            t = value  # the colon stands outside of the object
            continue
        elif tool >= 0 and level > 0:
            if depth == level and key == _KEY_PROPERTIES:
                properties = True
            elif depth == level and key == _KEY_REQUIRED and list_follows:
                properties = False
                t = value + 1
                while t < kinds.size and depths[t] != 0 and text[starts[t]] != _CLOSE_LIST:
                    if text[starts[t]] == _QUOTE and t + 1 < kinds.size:
                        end = _quoted_end(text, kinds, starts, depths, t + 1)
                        tools[tool, _NEED] += 1
                        tools[tool, _NEED_BYTES] += starts[end] - stops[t] + 4
                        t = end
                    t += 1
                continue
            elif depth == level:
                properties = False
            elif depth == level + 1 and properties:
                tools[tool, _OPTIONAL] += 1  # of all parameters; the required ones come off
                tools[tool, _HITS] += _match(text, starts[t], stops[t], table, seen, tool)
            elif key == _KEY_TYPE and depth == level + 2 and text_follows:
                kind = hashes[value + 1] if value + 1 < kinds.size else np.uint64(0)
                tools[tool, _TYPES] += 1
                tools[tool, _STRINGS] += kind == _STRING
                for listed in _LISTS:
                    tools[tool, _COMPOUND] += kind == listed
            elif key == _KEY_ENUM and list_follows:
                at = value + 1
                while at < kinds.size and depths[at] != 0 and text[starts[at]] != _CLOSE_LIST:
                    tools[tool, _ENUM] += depths[at] > 0 and text[starts[at]] == _COMMA
                    at += 1
                tools[tool, _ENUM] += 1
            elif key == _KEY_DESCRIPTION and text_follows:
                end = _quoted_end(text, kinds, starts, depths, value + 1)
                width = starts[end] - stops[value]
                tools[tool, _DESCRIPTION] = max(tools[tool, _DESCRIPTION], width)
        t += 1
    return tool + 1


@njit
def _names_parameters(hashes: np.ndarray) -> bool:
    """Whether the word stands anywhere, without which there is no tool: most prompts lack it."""
    found = False
    for h in hashes:
        found |= h == _KEY_PARAMETERS
    return found


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
    if not _names_parameters(hashes):
        return
    depths = np.empty(kinds.size, np.int32)
    if _mark_objects(text, kinds, hashes, starts, stops, depths) == 0:
        return
    table = np.zeros(_SLOTS, np.uint64)
    _read_asked(text, kinds, hashes, starts, stops, depths, table, out)
    tools = np.zeros((_MOST_TOOLS, _FIELDS))
    count = _read_tools(text, kinds, hashes, starts, stops, depths, table, tools)
    if count == 0:
        out[:] = 0.0
        return
    best, second, likely = -1.0, -1.0, 0
    types = 0.0
    for tool in range(count):
        row = tools[tool]
        row[_OPTIONAL] = max(0.0, row[_OPTIONAL] - row[_NEED])
        out[T.NAME_BYTES] += row[_NAME] / count
        out[T.REQUIRED] += row[_NEED] / count
        out[T.REQUIRED_BYTES] += row[_NEED_BYTES] / count
        out[T.OPTIONAL] += row[_OPTIONAL] / count
        out[T.ENUM_VALUES] += row[_ENUM] / count
        out[T.REQUIRED_MOST] = max(out[T.REQUIRED_MOST], row[_NEED])
        out[T.REQUIRED_BYTES_MOST] = max(out[T.REQUIRED_BYTES_MOST], row[_NEED_BYTES])
        out[T.LONGEST_DESCRIPTION] = max(out[T.LONGEST_DESCRIPTION], row[_DESCRIPTION])
        out[T.STRING_SHARE] += row[_STRINGS]
        out[T.COMPOUND_SHARE] += row[_COMPOUND]
        types += row[_TYPES]
        out[T.NAMED] += row[_NAME_HITS] > 0
        shared = _NAME_WEIGHT * row[_NAME_HITS] + row[_HITS]
        if shared > best:
            best, second, likely = shared, best, tool
        elif shared > second:
            second = shared
    row = tools[likely]
    out[T.COUNT] = count
    out[T.LIKELY_NAME_BYTES] = row[_NAME]
    out[T.LIKELY_REQUIRED] = row[_NEED]
    out[T.LIKELY_REQUIRED_BYTES] = row[_NEED_BYTES]
    out[T.LIKELY_OPTIONAL] = row[_OPTIONAL]
    out[T.LIKELY_ENUM_VALUES] = row[_ENUM]
    out[T.LIKELY_WORDS] = best
    out[T.LIKELY_LEAD] = best - max(second, 0.0)
    out[T.CALL_BYTES] = row[_NAME] + row[_NEED_BYTES] + out[T.VALUE_BYTES]
    for column in range(T.STRING_SHARE):
        out[column] = np.log1p(out[column])
    out[T.STRING_SHARE] /= max(types, 1.0)
    out[T.COMPOUND_SHARE] /= max(types, 1.0)
    own = max(row[_TYPES], 1.0)
    out[T.LIKELY_STRING_SHARE] = row[_STRINGS] / own
    out[T.LIKELY_COMPOUND_SHARE] = row[_COMPOUND] / own
