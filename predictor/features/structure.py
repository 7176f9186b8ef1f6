"""Columns that can be counted: layout, numbers with units, options, code, schema, instructions.

`read_structure` fills one row from the tokens of `predictor.scan`. Counts enter as log(1 + count),
since the length of an answer follows the order of magnitude of what is asked.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from lengthwise.data.arrays import njit
from lengthwise.predictor.features.lexicon import LEXICON, NUMBER_WORDS, UNITS
from lengthwise.predictor.features.scan import (
    NEWLINE,
    NUMBER,
    PUNCTUATION,
    WORD,
    combine,
    tokens_of,
    word_hash,
)

EDGE_TOKENS = 20  # instructions usually stand in the first or the last so many tokens
_UNIT_REACH = 3  # "100 to 150 short words": a unit this many tokens behind its number

_Columns = namedtuple(
    "_Columns",
    "BYTES WORDS NUMBERS PUNCTUATION LINES BLANK_LINES LONGEST_LINE FIRST_LINE LAST_LINE "
    "WORD_BYTES UPPER_SHARE DIGIT_SHARE NON_ASCII_SHARE QUESTION_MARKS EXCLAMATIONS QUOTES "
    "COMMAS COLONS SEMICOLONS PARENS BRACKETS BRACES DEPTH EQUALS OPERATORS BACKSLASHES "
    "DOLLARS FENCES CODE_LINES CODE_BYTES INDENTED_LINES BULLET_LINES NUMBERED_LINES "
    "OPTION_LINES OPTION_BYTES OPTION_DIGITS BEFORE_OPTIONS ROLE_MARKS SYSTEM_BYTES "
    "LAST_TURN_BYTES URLS REQUIRED_NAMES MAX_NUMBER FIRST_NUMBER ENDS_WITH_QUESTION "
    "ENDS_WITH_COLON",
)
F = _Columns(*range(len(_Columns._fields)))  # a tuple of integers, which compiled code can index by
N_SCALAR = len(F)
N_LEXICON = len(LEXICON)
N_UNITS = len(UNITS)
STRUCTURE_NAMES: tuple[str, ...] = (
    *(f"layout_{name.lower()}" for name in F._fields),
    *(f"asked_{name}" for name in UNITS),
    *(f"words_{name}" for name in LEXICON),
    *(f"edge_{name}" for name in LEXICON),
)

_LEXICON_BITS = np.uint64((1 << N_LEXICON) - 1)
_STARTS_PHRASE = np.uint64(1 << 63)  # only behind such a word a phrase is looked up
_TABLE_SIZE = 1 << 11  # a few times the words, and small: every token of a prompt is looked up
_REQUIRED = word_hash("required")
_HTTP = word_hash("http")
_HTTPS = word_hash("https")
_SYSTEM = word_hash("system")


def _build_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Open-addressing table: word hash -> bit mask of groups (units last), value of the number."""
    keys = np.zeros(_TABLE_SIZE, np.uint64)
    masks = np.zeros(_TABLE_SIZE, np.uint64)
    numbers = np.full(_TABLE_SIZE, -1.0)

    def slot(word: str) -> int:
        h = word_hash(word)
        at = int(h) & (_TABLE_SIZE - 1)
        while keys[at] not in (0, h):
            at = (at + 1) & (_TABLE_SIZE - 1)
        keys[at] = h
        return at

    for group, words in enumerate([*LEXICON.values(), *UNITS.values()]):
        for word in words:
            masks[slot(word)] |= np.uint64(1) << np.uint64(group)
            first, *further = tokens_of(word)
            if further:
                masks[slot(first)] |= _STARTS_PHRASE
    for word, value in NUMBER_WORDS.items():
        numbers[slot(word)] = value
    return keys, masks, numbers


KEYS, MASKS, NUMBERS = _build_table()


@njit
def _find(keys: np.ndarray, h: np.uint64) -> int:
    at = np.int64(h & np.uint64(keys.size - 1))
    while keys[at] != 0:
        if keys[at] == h:
            return at
        at = (at + 1) & (keys.size - 1)
    return -1


@njit
def _count_groups(mask: np.uint64, near_edge: bool, out: np.ndarray) -> None:
    left = mask & _LEXICON_BITS
    group = 0
    while left != np.uint64(0):
        if left & np.uint64(1):
            out[N_SCALAR + N_UNITS + group] += 1.0
            if near_edge:
                out[N_SCALAR + N_UNITS + N_LEXICON + group] += 1.0
        left = left >> np.uint64(1)
        group += 1


@njit
def _read_words(
    kinds: np.ndarray,
    hashes: np.ndarray,
    values: np.ndarray,
    keys: np.ndarray,
    masks: np.ndarray,
    numbers: np.ndarray,
    out: np.ndarray,
) -> None:
    """Lexicon counts, and the largest number in front of each unit."""
    count = kinds.size
    pending = -1.0  # the last number, waiting for its unit
    pending_at = -_UNIT_REACH - 1
    for t in range(count):
        near_edge = t < EDGE_TOKENS or t >= count - EDGE_TOKENS
        if kinds[t] == NUMBER:
            pending, pending_at = values[t], t
            out[F.MAX_NUMBER] = max(out[F.MAX_NUMBER], np.log1p(values[t]))
            if out[F.FIRST_NUMBER] == 0.0:
                out[F.FIRST_NUMBER] = np.log1p(values[t])
            continue
        at = _find(keys, hashes[t])
        if at >= 0:
            if numbers[at] >= 0.0:
                pending, pending_at = numbers[at], t
            mask = masks[at]
            _count_groups(mask, near_edge, out)
            if t - pending_at <= _UNIT_REACH:
                for unit in range(N_UNITS):
                    if (mask >> np.uint64(N_LEXICON + unit)) & np.uint64(1):
                        column = N_SCALAR + unit
                        out[column] = max(out[column], np.log1p(pending))
        if at >= 0 and masks[at] & _STARTS_PHRASE and t + 1 < count:
            pair = combine(hashes[t], hashes[t + 1])
            at = _find(keys, pair)
            if at >= 0:
                _count_groups(masks[at], near_edge, out)
            if t + 2 < count:
                at = _find(keys, combine(pair, hashes[t + 2]))
                if at >= 0:
                    _count_groups(masks[at], near_edge, out)


@njit
def _count_mark(byte: int, out: np.ndarray) -> None:
    if byte == 63:
        out[F.QUESTION_MARKS] += 1
    elif byte == 33:
        out[F.EXCLAMATIONS] += 1
    elif byte == 34 or byte == 39:
        out[F.QUOTES] += 1
    elif byte == 44:
        out[F.COMMAS] += 1
    elif byte == 58:
        out[F.COLONS] += 1
    elif byte == 59:
        out[F.SEMICOLONS] += 1
    elif byte == 40:
        out[F.PARENS] += 1
    elif byte == 91:
        out[F.BRACKETS] += 1
    elif byte == 123:
        out[F.BRACES] += 1
    elif byte == 61:
        out[F.EQUALS] += 1
    elif byte == 43 or byte == 45 or byte == 47 or byte == 42 or byte == 94:
        out[F.OPERATORS] += 1
    elif byte == 92:
        out[F.BACKSLASHES] += 1
    elif byte == 36:
        out[F.DOLLARS] += 1


@njit
def _read_line(
    text: np.ndarray,
    kinds: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    first: int,
    last: int,
    begin: int,
    end: int,
    option: int,
    out: np.ndarray,
) -> int:
    """One line, tokens [first, last) and bytes [begin, end); returns the next option letter."""
    width = end - begin
    out[F.LINES] += 1
    out[F.LONGEST_LINE] = max(out[F.LONGEST_LINE], width)
    if first == last:
        out[F.BLANK_LINES] += 1
        return option
    if out[F.FIRST_LINE] == 0:
        out[F.FIRST_LINE] = width
    out[F.LAST_LINE] = width
    indent = starts[first] - begin
    out[F.INDENTED_LINES] += indent >= 2
    head = text[starts[first]]
    listed = last - first > 1 and (text[starts[first + 1]] == 46 or text[starts[first + 1]] == 41)
    if head == 45 or head == 42:
        out[F.BULLET_LINES] += 1
    if kinds[first] == NUMBER and listed:
        out[F.NUMBERED_LINES] += 1
    if kinds[first] == WORD and stops[first] - starts[first] == 1 and listed and head == option:
        if out[F.OPTION_LINES] == 0:
            out[F.BEFORE_OPTIONS] = begin
        out[F.OPTION_LINES] += 1
        out[F.OPTION_BYTES] += width
        for t in range(first, last):
            out[F.OPTION_DIGITS] += kinds[t] == NUMBER
        option += 1
    tail = text[starts[last - 1]]
    calls = False
    for t in range(first, last):
        calls |= text[starts[t]] == 61 or text[starts[t]] == 40
    closes = tail == 58 or tail == 59 or tail == 123 or tail == 125 or tail == 41 or tail == 93
    if indent >= 2 or (calls and closes):
        out[F.CODE_LINES] += 1
        out[F.CODE_BYTES] += width
    return option


@njit
def _read_layout(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    out: np.ndarray,
) -> None:
    depth = 0
    line_first, line_begin, option = 0, 0, 65
    in_required = False
    role_at, in_system = -1, False
    for t in range(kinds.size):
        kind = kinds[t]
        byte = text[starts[t]]
        if kind == WORD:
            out[F.WORDS] += 1
            out[F.WORD_BYTES] += stops[t] - starts[t]
            if hashes[t] == _REQUIRED:
                in_required = True
            elif hashes[t] == _HTTP or hashes[t] == _HTTPS:
                out[F.URLS] += 1
            elif in_required and t > 0 and text[starts[t] - 1] == 34:
                out[F.REQUIRED_NAMES] += 1
        elif kind == NUMBER:
            out[F.NUMBERS] += 1
        elif kind == PUNCTUATION:
            out[F.PUNCTUATION] += 1
            _count_mark(byte, out)
            if byte == 123 or byte == 91 or byte == 40:
                depth += 1
                out[F.DEPTH] = max(out[F.DEPTH], depth)
            elif byte == 125 or byte == 93 or byte == 41:
                depth = max(0, depth - 1)
                if byte == 93:
                    in_required = False
            elif byte == 96 and t > 1 and text[starts[t - 1]] == 96 and text[starts[t - 2]] == 96:
                out[F.FENCES] += 1
            elif byte == 60 and t + 2 < kinds.size and text[starts[t + 1]] == 124:
                if in_system:
                    out[F.SYSTEM_BYTES] += starts[t] - role_at
                out[F.ROLE_MARKS] += 1
                role_at, in_system = starts[t], hashes[t + 2] == _SYSTEM
        else:
            option = _read_line(
                text, kinds, starts, stops, line_first, t, line_begin, starts[t], option, out
            )
            line_first, line_begin = t + 1, stops[t]
    _read_line(
        text, kinds, starts, stops, line_first, kinds.size, line_begin, text.size, option, out
    )
    out[F.LAST_TURN_BYTES] = text.size - max(role_at, 0)
    for t in range(kinds.size - 1, -1, -1):
        if kinds[t] != NEWLINE:
            out[F.ENDS_WITH_QUESTION] = text[starts[t]] == 63
            out[F.ENDS_WITH_COLON] = text[starts[t]] == 58
            break


@njit
def read_structure(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    values: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    keys: np.ndarray,
    masks: np.ndarray,
    numbers: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill `out`, (len(STRUCTURE_NAMES),) float64, from one prompt's bytes and tokens."""
    out[:] = 0.0
    _read_words(kinds, hashes, values, keys, masks, numbers, out)
    _read_layout(text, kinds, hashes, starts, stops, out)
    upper = digits = wide = 0
    for byte in text:
        upper += 65 <= byte <= 90
        digits += 48 <= byte <= 57
        wide += byte >= 128
    size = max(text.size, 1)
    out[F.BYTES] = text.size
    out[F.UPPER_SHARE] = upper / size
    out[F.DIGIT_SHARE] = digits / size
    out[F.NON_ASCII_SHARE] = wide / size
    out[F.WORD_BYTES] /= max(out[F.WORDS], 1.0)
    if out[F.OPTION_LINES] > 0:
        out[F.OPTION_BYTES] /= out[F.OPTION_LINES]
        out[F.OPTION_DIGITS] /= out[F.OPTION_LINES]
    for column in range(out.size):
        if not (F.WORD_BYTES <= column <= F.NON_ASCII_SHARE) and not (
            F.MAX_NUMBER <= column < N_SCALAR + N_UNITS
        ):
            out[column] = np.log1p(out[column])
