"""Everything known about a request before its answer starts, as named numeric columns."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from lengthwise.data.arrays import njit
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.regressor import TextTransformer
from lengthwise.predictor.features.embedding import SentenceEmbedding
from lengthwise.predictor.features.ridges import fill_own, ridge_of
from lengthwise.predictor.features.scan import encode, scan
from lengthwise.predictor.features.structure import (
    KEYS,
    MASKS,
    NUMBERS,
    STRUCTURE_NAMES,
    read_structure,
)
from lengthwise.predictor.features.text import HashedText, project_tokens
from lengthwise.predictor.features.tools import TOOL_NAMES, read_tools

BLOCKS = ("structure", "tools", "text", "embedding", "request")
DEFAULT_BLOCKS = ("structure", "tools", "text", "request")
LAYOUT_VERSION = 1  # raise when a column changes its meaning: older artifacts are then refused
REQUEST_NAMES = ("request_slo_class", "request_log_prompt_tokens")
_TOKEN_COLUMNS = [STRUCTURE_NAMES.index(f"layout_{name}") for name in ("bytes", "words")]
_BYTES_AT, _WORDS_AT = _TOKEN_COLUMNS
_STRUCTURE = len(STRUCTURE_NAMES)
_NOTHING = np.empty((1, 0))  # columns of nothing more


@njit
def _read_prompt(
    text: np.ndarray,
    keys: np.ndarray,
    masks: np.ndarray,
    numbers: np.ndarray,
    char_max: int,
    row_of: np.ndarray,
    weights: np.ndarray,
    split: int,
    ridge: int,
    offset: float,
    counted: np.ndarray,
    sums: np.ndarray,
    columns: np.ndarray,
) -> None:
    """One prompt's structure and tools, (c,), and text columns, (k,): all that is read of it.

    Where `counted` has room for the structure alone, tools are not looked for.

    `sums` is room for what text columns are made of: `split` of the SVD, then one a ridge, of which
    `ridge` with its `offset` is the row's own.
    """
    kinds, hashes, values, starts, stops = scan(text)
    structure = counted[:_STRUCTURE]
    read_structure(text, kinds, hashes, values, starts, stops, keys, masks, numbers, structure)
    if counted.size > _STRUCTURE:
        read_tools(text, kinds, hashes, starts, stops, counted[_STRUCTURE:])
    if sums.size == 0:
        return
    project_tokens(text, kinds, hashes, starts, stops, char_max, row_of, weights, sums)
    columns[:split] = sums[:split]
    if sums.size > split:
        fill_own(sums[split:], ridge, offset, columns[split:])


@njit
def _join_rows(
    counted: np.ndarray,
    columns: np.ndarray,
    request: np.ndarray,
    token_fit: np.ndarray,
    left_out: int,
    out: np.ndarray,
) -> None:
    """Blocks side by side in `out`, (n, f): what was counted, (n, c), and text, (n, k).

    The first `left_out` columns of the former are not wanted. `request`, (n, 2) or none, is the
    class's number and the logarithm of the prompt's tokens, NaN where they are to be estimated.
    """
    first = counted.shape[1] - left_out
    last = first + columns.shape[1]
    for i in range(out.shape[0]):
        for column in range(first):
            out[i, column] = counted[i, left_out + column]
        for column in range(columns.shape[1]):
            out[i, first + column] = columns[i, column]
        if out.shape[1] > last:
            out[i, last] = request[i, 0]
            size = request[i, 1]
            if np.isnan(size):
                size = token_fit[0] + token_fit[1] * counted[i, _BYTES_AT]
                size += token_fit[2] * counted[i, _WORDS_AT]
            out[i, last + 1] = size


@njit
def _read_row(
    text: np.ndarray,
    keys: np.ndarray,
    masks: np.ndarray,
    numbers: np.ndarray,
    char_max: int,
    row_of: np.ndarray,
    weights: np.ndarray,
    split: int,
    ridge: int,
    offset: float,
    more: np.ndarray,
    number: float,
    size: float,
    token_fit: np.ndarray,
    width: int,
    left_out: int,
    out: np.ndarray,
) -> None:
    """A prompt's whole row into `out`, (1, f): `_read_prompt` and `_join_rows` in one call.

    `width` columns are counted; `more`, (m,), follow the text's; `number` is the class's.
    """
    sums = np.empty(weights.shape[1] - 1)
    of_text = 0 if sums.size == 0 else split + 2 * (sums.size > split)
    counted = np.empty((1, width))
    columns = np.empty((1, of_text + more.size))
    _read_prompt(
        text, keys, masks, numbers, char_max, row_of, weights, split, ridge, offset,
        counted[0], sums, columns[0, :of_text],
    )  # fmt: skip
    columns[0, of_text:] = more
    request = np.empty((1, 2))
    request[0, 0] = number
    request[0, 1] = size
    _join_rows(counted, columns, request, token_fit, left_out, out)


class PromptFeatures(TextTransformer):
    """Prompts to a float32 matrix: structure, tools, text columns, class and prompt length.

    `X` is a sequence of texts or a frame with the column `prompt` and, where known, `slo_class`
    and `prompt_tokens`. A missing token count is estimated from the text; a class not seen in
    training and a missing one are the same.

    Parameters
    ----------
    text : HashedText, optional
        The text block; default settings if None.
    blocks : tuple of str
        Which of BLOCKS to compute (the ablation takes them away in turn).
    embedding : SentenceEmbedding, optional
        Settings of the block "embedding"; the packaged MiniLM if None.
    """

    def __init__(
        self,
        text: HashedText | None = None,
        blocks: tuple[str, ...] = DEFAULT_BLOCKS,
        embedding: SentenceEmbedding | None = None,
    ) -> None:
        self.text = text
        self.blocks = blocks
        self.embedding = embedding

    def fit(
        self,
        X: Sequence[str] | pd.DataFrame,
        y: ArrayLike | None = None,
        groups: Sequence[str] | None = None,
    ) -> PromptFeatures:
        """Learn the text block, the known classes and the tokens-per-text estimate."""
        self.fit_transform(X, y, groups)
        return self

    def fit_transform(
        self,
        X: Sequence[str] | pd.DataFrame,
        y: ArrayLike | None = None,
        groups: Sequence[str] | None = None,
    ) -> NDArray[np.float32]:
        """Columns for the training rows; the ridge on text is out of fold (see HashedText)."""
        if unknown := sorted(set(self.blocks) - set(BLOCKS)):
            raise ValueError(f"unknown feature block {unknown[0]!r}; known: {', '.join(BLOCKS)}")
        prompts, classes, tokens = _columns_of(X)
        self.classes_ = sorted({name for name in classes if name is not None})
        self.text_ = HashedText(**self.text.get_params()) if self.text else HashedText()
        if "text" in self.blocks:
            columns = self.text_.fit_transform(prompts, y, groups, classes)
        else:
            columns = self.text_.read_nothing(len(prompts))
        self.embedding_: SentenceEmbedding | None = None
        if "embedding" in self.blocks:
            given = self.embedding.get_params() if self.embedding else {}
            self.embedding_ = SentenceEmbedding(**given)
            embedded = self.embedding_.fit_transform(prompts, y, groups, classes)
            columns = np.column_stack((columns, embedded))
        self.token_fit_ = np.array([0.0, 0.5, 0.5])
        counted = self._counted(prompts)
        known = np.array([count is not None for count in tokens])
        if known.sum() >= 10:
            design = np.column_stack((np.ones(known.sum()), counted[known][:, _TOKEN_COLUMNS]))
            target = np.log1p(np.array([tokens[i] for i in np.flatnonzero(known)], float))
            self.token_fit_ = np.linalg.lstsq(design, target, rcond=None)[0]
        return self._join(counted, columns, classes, tokens)

    def transform(self, X: Sequence[str] | pd.DataFrame) -> NDArray[np.float32]:
        """Columns for any rows, (n, f) float32."""
        check_is_fitted(self, "text_")
        return self.rows(*_columns_of(X))

    def rows(
        self,
        prompts: Sequence[str],
        classes: Sequence[str | None],
        tokens: Sequence[int | None],
    ) -> NDArray[np.float32]:
        """`transform` on bare columns: the serving path, with no frame in between."""
        n, read, known = len(prompts), self.text_, self.classes_
        more = _NOTHING
        if self.embedding_ is not None:
            more = np.ascontiguousarray(self.embedding_.transform(prompts, classes), np.float64)
        width, left_out = self._width, self._left_out
        last = width - left_out + read.n_columns + more.shape[1]
        out = np.empty((n, last + 2 * ("request" in self.blocks)), np.float32)
        for i, (prompt, name, count) in enumerate(zip(prompts, classes, tokens, strict=True)):
            ridge, offset = ridge_of(name, read.classes_, read.class_offsets_)
            _read_row(
                encode(prompt), KEYS, MASKS, NUMBERS,
                read.char_max, read.row_of_, read.weights_, read.n_svd_, ridge, offset,
                more[i if more is not _NOTHING else 0],
                float(known.index(name)) if name in known else -1.0,
                math.nan if count is None else float(np.log1p(count)),
                self.token_fit_, width, left_out, out[i : i + 1],
            )  # fmt: skip
        return out

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.str_]:
        """Column names, each with its block as prefix."""
        check_is_fitted(self, "text_")
        names: list[str] = []
        if "structure" in self.blocks:
            names += STRUCTURE_NAMES
        if "tools" in self.blocks:
            names += TOOL_NAMES
        if "text" in self.blocks:
            names += list(self.text_.get_feature_names_out())
        if self.embedding_ is not None:
            names += list(self.embedding_.get_feature_names_out())
        if "request" in self.blocks:
            names += REQUEST_NAMES
        return np.array(names)

    @property
    def contract(self) -> str:
        """What a feature row means: layout version, columns and a hash of the learned numbers."""
        digest = hashlib.sha256()
        text = self.text_
        parts = [text.weights_, text.row_of_, text.class_offsets_, self.token_fit_]
        if (embedding := self.embedding_) is not None:
            parts += [embedding.weights_, embedding.mean_, embedding.class_offsets_]
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        names = "\n".join([*self.get_feature_names_out(), *self.classes_])
        digest.update(names.encode())
        return f"v{LAYOUT_VERSION}-{digest.hexdigest()[:16]}"

    @property
    def _width(self) -> int:
        """Columns that are counted; the structure's always are, as token counts come from them."""
        return _STRUCTURE + len(TOOL_NAMES) * ("tools" in self.blocks)

    @property
    def _left_out(self) -> int:
        """How many columns are counted and not wanted."""
        return 0 if "structure" in self.blocks else _STRUCTURE

    def _counted(self, prompts: Sequence[str]) -> Floats:
        out = np.zeros((len(prompts), self._width))
        for i, prompt in enumerate(prompts):
            text = encode(prompt)
            kinds, hashes, values, starts, stops = scan(text)
            found = text, kinds, hashes, values, starts, stops
            read_structure(*found, KEYS, MASKS, NUMBERS, out[i, :_STRUCTURE])
            if self._width > _STRUCTURE:
                read_tools(text, kinds, hashes, starts, stops, out[i, _STRUCTURE:])
        return out

    def _join(
        self,
        counted: Floats,
        columns: Floats,
        classes: Sequence[str | None],
        tokens: Sequence[int | None],
    ) -> NDArray[np.float32]:
        left_out = self._left_out
        # no columns, if neither text nor embedding was asked for
        last = counted.shape[1] - left_out + columns.shape[1]
        request = np.zeros((0, 2))
        if "request" in self.blocks:
            known = self.classes_
            request = np.array(
                [
                    (
                        known.index(name) if name in known else -1.0,
                        np.nan if count is None else np.log1p(count),
                    )
                    for name, count in zip(classes, tokens, strict=True)
                ]
            ).reshape(-1, 2)
        out = np.empty((len(counted), last + 2 * ("request" in self.blocks)), np.float32)
        _join_rows(counted, columns, request, self.token_fit_, left_out, out)
        return out


def _columns_of(
    X: Sequence[str] | pd.DataFrame,
) -> tuple[list[str], list[str | None], list[int | None]]:
    """Texts, classes and token counts of either form of input; None where unknown."""
    if not isinstance(X, pd.DataFrame):
        prompts = list(X)
        if any(not isinstance(prompt, str) for prompt in prompts):
            raise ValueError("PromptFeatures takes texts, or a frame with the column 'prompt'")
        return prompts, [None] * len(prompts), [None] * len(prompts)
    n = len(X)
    classes = X["slo_class"].tolist() if "slo_class" in X else [None] * n
    tokens = X["prompt_tokens"].tolist() if "prompt_tokens" in X else [None] * n
    return (
        X["prompt"].tolist(),
        [name if isinstance(name, str) else None for name in classes],
        [None if count is None or pd.isna(count) else int(count) for count in tokens],
    )
