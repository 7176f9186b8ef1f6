"""Fine-tune a `BertReader` with the Hugging Face Trainer (torch; extra `bert`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lengthwise.predictor.distribution import DEFAULT_LEVELS
from lengthwise.predictor.estimators.encoder import (
    MAX_LENGTH,
    PACKAGED,
    BertLengthModel,
    BertReader,
    encoder_path,
    tokenize,
)


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


class _Report(TrainerCallback):
    def __init__(self, report: Callable[[float], None]) -> None:
        self.report = report

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self.report(state.global_step / max(state.max_steps, 1))


def fit_reader(
    prompts: Sequence[str],
    output_tokens: ArrayLike,
    censored: ArrayLike | None = None,
    *,
    encoder: str = PACKAGED,
    epochs: float = 3.0,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    int8: bool = True,
    seed: int = 0,
    use_cpu: bool = False,
    report: Callable[[float], None] = lambda _share: None,
) -> BertReader:
    """Train on prompts and the lengths of their answers, (n,), `censored` marking lower bounds.

    `encoder` is the packaged MiniLM or any name transformers knows; a GPU is used where there
    is one unless `use_cpu`. `report` is told the share done.
    """
    torch.manual_seed(seed)
    log_y = np.log(np.maximum(np.asarray(output_tokens, np.float64), 1.0))
    cut = np.zeros(log_y.size) if censored is None else np.asarray(censored, np.float64)
    tokenizer = AutoTokenizer.from_pretrained(encoder_path(encoder))
    start = np.quantile(log_y, DEFAULT_LEVELS)
    ceiling = float((log_y + np.log(2.0) * cut).max())
    model = BertLengthModel.from_encoder(encoder, start, max_length=max_length, ceiling=ceiling)
    ids = tokenize(tokenizer, prompts, max_length)["input_ids"]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=epochs,
                learning_rate=learning_rate,
                per_device_train_batch_size=batch_size,
                train_sampling_strategy="group_by_length",
                warmup_steps=max(1, int(0.06 * epochs * len(prompts) / batch_size)),
                weight_decay=0.01,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                seed=seed,
                use_cpu=use_cpu,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=_Rows(ids, log_y, cut),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            callbacks=[_Report(report)],
        )
        trainer.train()
    return BertReader(model.cpu(), tokenizer, int8)
