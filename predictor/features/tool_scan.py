"""The tools that a prompt offers, found in its tokens: a row of numbers for each.

A tool is a JSON object with the keys "name" and "parameters", as OpenAI-compatible servers render
it. What is outside of such objects is what was asked, whose words tools are matched against.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import njit
from lengthwise.predictor.features.scan import (
    FNV_OFFSET,
    FNV_PRIME,
    PUNCTUATION,
    WORD,
    word_hash,
)

# one tool's numbers, a row of the table that `tool_rows` fills
NAME, NEED, NEED_BYTES, OPTIONAL, ENUM, DESCRIPTION = 0, 1, 2, 3, 4, 5
TYPES, STRINGS, COMPOUND, HITS, NAME_HITS, FIELDS = 6, 7, 8, 9, 10, 11

SHORTEST = 4  # letters of a word that may tell tools apart
QUOTE, COMMA = 34, 44
_STEM_BYTES = 5  # "calculate", "Calculates" and "calculation" share a stem
_BACKSLASH, _COLON = 92, 58
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 123, 125, 91, 93

_KEY_NAME = word_hash("name")
_KEY_PARAMETERS = word_hash("parameters")
_KEY_PROPERTIES = word_hash("properties")
_KEY_REQUIRED = word_hash("required")
_KEY_TYPE = word_hash("type")
_KEY_ENUM = word_hash("enum")
_KEY_DESCRIPTION = word_hash("description")
_STRING = word_hash("string")
_LISTS = np.array([word_hash(w) for w in ("array", "list", "tuple", "dict", "object")])
_TOP = np.uint64(40)


@njit
def _is_key(
    text: np.ndarray, kinds: np.ndarray, starts: np.ndarray, stops: np.ndarray, t: int
) -> bool:
    """Whether token t is a word in double quotes with a colon behind."""
    return (
        kinds[t] == WORD
        and starts[t] > 0
        and text[starts[t] - 1] == QUOTE
        and t + 2 < kinds.size
        and text[starts[t + 1]] == QUOTE
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
def names_parameters(hashes: np.ndarray) -> bool:
    """Whether the word stands anywhere, without which there is no tool: most prompts lack it."""
    found = False
    for h in hashes:
        found |= h == _KEY_PARAMETERS
    return found


@njit
def mark_objects(
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
            begins = byte == _OPEN and t + 2 < kinds.size and text[starts[t + 1]] == QUOTE
            if begins and _is_key(text, kinds, starts, stops, t + 2):
                depth, quoted = 1, False
                depths[t] = 1
            continue
        depths[t] = -depth if quoted else depth
        if byte == QUOTE and not (quoted and _escaped(text, starts[t])):
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
def stem_hash(text: np.ndarray, start: int, stop: int) -> np.uint64:
    """Hash of a word's first letters in lower case."""
    h = FNV_OFFSET
    for at in range(start, min(stop, start + _STEM_BYTES)):
        letter = text[at] + 32 if 65 <= text[at] <= 90 else text[at]
        h = (h ^ np.uint64(letter)) * FNV_PRIME
    return h | np.uint64(1)  # 0 is an empty slot


@njit
def slot_of(table: np.ndarray, h: np.uint64) -> int:
    """Where a hash is in the table, or the empty slot where it would be."""
    at = np.int64((h >> _TOP) & np.uint64(table.size - 1))
    while table[at] != 0 and table[at] != h:
        at = (at + 1) & (table.size - 1)
    return at


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
            if at - begin >= SHORTEST:
                place = slot_of(table, stem_hash(text, begin, at))
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
def tool_rows(
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
                tools[tool, HITS] += _match(text, starts[t], stops[t], table, seen, tool)
            t += 1
            continue
        depth = -depth
        key = hashes[t]
        value = t + 3  # the first token behind the colon
        text_follows = value < kinds.size and text[starts[value]] == QUOTE
        list_follows = value < kinds.size and text[starts[value]] == _OPEN_LIST
        if level == 0 and key == _KEY_NAME and text_follows:
            if tool + 1 == tools.shape[0]:
                return tool + 1
            tool += 1
            base = depth
            end = _quoted_end(text, kinds, starts, depths, value + 1)
            tools[tool, :] = 0.0
            tools[tool, NAME] = starts[end] - stops[value]
            for word in range(value + 1, end):
                if kinds[word] == WORD:
                    hits = _match(text, starts[word], stops[word], table, seen, tool)
                    tools[tool, NAME_HITS] += hits
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
                    if text[starts[t]] == QUOTE and t + 1 < kinds.size:
                        end = _quoted_end(text, kinds, starts, depths, t + 1)
                        tools[tool, NEED] += 1
                        tools[tool, NEED_BYTES] += starts[end] - stops[t] + 4
                        t = end
                    t += 1
                continue
            elif depth == level:
                properties = False
            elif depth == level + 1 and properties:
                tools[tool, OPTIONAL] += 1  # of all parameters; the required ones come off
                tools[tool, HITS] += _match(text, starts[t], stops[t], table, seen, tool)
            elif key == _KEY_TYPE and depth == level + 2 and text_follows:
                kind = hashes[value + 1] if value + 1 < kinds.size else np.uint64(0)
                tools[tool, TYPES] += 1
                tools[tool, STRINGS] += kind == _STRING
                for listed in _LISTS:
                    tools[tool, COMPOUND] += kind == listed
            elif key == _KEY_ENUM and list_follows:
                at = value + 1
                while at < kinds.size and depths[at] != 0 and text[starts[at]] != _CLOSE_LIST:
                    tools[tool, ENUM] += depths[at] > 0 and text[starts[at]] == COMMA
                    at += 1
                tools[tool, ENUM] += 1
            elif key == _KEY_DESCRIPTION and text_follows:
                end = _quoted_end(text, kinds, starts, depths, value + 1)
                width = starts[end] - stops[value]
                tools[tool, DESCRIPTION] = max(tools[tool, DESCRIPTION], width)
        t += 1
    return tool + 1
