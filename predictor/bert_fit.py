"""Fine-tune a `BertPredictor` with the Hugging Face Trainer (torch; extra `bert`)."""

from __future__ import annotations

import tempfile

import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from data.errors import InputError
from predictor.bert import PACKAGED, BertLengthModel, BertPredictor, encoder_path, tokenize
from predictor.conformal import CalibratedLevels, scores_from
from predictor.distribution import DEFAULT_LEVELS
from predictor.fit import censored_rows, make_card

_MIN_ROWS = 20
_MIN_CALIBRATION_ROWS = 30


class _Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Token ids with log-length and the mark of a lower bound."""

    def __init__(self, ids: list[list[int]], log_y: np.ndarray, censored: np.ndarray) -> None:
        self.ids, self.log_y, self.censored = ids, log_y, censored

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, object]:
        return {
            "input_ids": self.ids[i],
            "labels": float(self.log_y[i]),
            "censored": float(self.censored[i]),
        }


def fit_bert(
    table_train: pd.DataFrame,
    table_calibration: pd.DataFrame,
    *,
    encoder: str = PACKAGED,
    epochs: float = 3.0,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    max_length: int = 192,
    seed: int = 0,
    use_cpu: bool = False,
) -> BertPredictor:
    """Train on one prompt table, calibrate on another.

    `encoder` is the packaged MiniLM or any name transformers knows; a GPU is used where there
    is one unless `use_cpu`. InputError where fewer than 20 rows have text.
    """
    train = table_train[table_train["prompt"].notna()]
    calibration = table_calibration[table_calibration["prompt"].notna()]
    if len(train) < _MIN_ROWS:
        raise InputError(f"training needs at least {_MIN_ROWS} rows with text, got {len(train)}")
    torch.manual_seed(seed)
    log_y = np.log(np.maximum(train["output_tokens"].to_numpy(np.float64), 1.0))
    tokenizer = AutoTokenizer.from_pretrained(encoder_path(encoder))
    start = np.quantile(log_y, DEFAULT_LEVELS)
    model = BertLengthModel.from_encoder(encoder, start, max_length)
    ids = tokenize(tokenizer, train["prompt"].tolist(), max_length)["input_ids"]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=epochs,
                learning_rate=learning_rate,
                per_device_train_batch_size=batch_size,
                warmup_steps=max(1, int(0.06 * epochs * len(train) / batch_size)),
                weight_decay=0.01,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=seed,
                use_cpu=use_cpu,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=_Rows(ids, log_y, censored_rows(train)),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        trainer.train()
    levels = CalibratedLevels.none(DEFAULT_LEVELS)
    predictor = BertPredictor(model, tokenizer, levels, {})
    if len(calibration) >= _MIN_CALIBRATION_ROWS:
        scores = scores_from(
            predictor.log_quantiles(calibration["prompt"].tolist()),
            np.log(np.maximum(calibration["output_tokens"].to_numpy(np.float64), 1.0)),
            np.asarray(DEFAULT_LEVELS),
        )
        levels = CalibratedLevels.fit(scores, calibration["slo_class"].tolist(), DEFAULT_LEVELS)
    settings = {"encoder": encoder, "epochs": epochs, "learning_rate": learning_rate, "seed": seed}
    card = make_card(train, "bert", settings, f"bert-{encoder}-{max_length}")
    return BertPredictor(model, tokenizer, levels, card)
