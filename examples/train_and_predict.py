"""Train a length predictor on a JSONL of your own and ask it about new prompts.

    lengthwise data synthesize --output rows.jsonl --rows 2000     # or your own rows
    python examples/train_and_predict.py rows.jsonl lengths/

A row has `prompt` and either `response` or `output_tokens`; `slo_class` is optional.
"""

import sys

from lengthwise import LengthPredictor, fit_predictor
from lengthwise.data.sources.prompt_files import read_file
from lengthwise.data.splits import split_table

rows, directory = sys.argv[1:3]
# by the hash of the question: no question is on two sides
parts = split_table(read_file(rows))
predictor = fit_predictor(parts["train"], parts["calibration"])
predictor.save(directory)

predictor = LengthPredictor.load(directory)
prompts = ["Name three rivers.", "Write an essay of 800 words about the sea."]
lengths = predictor.predict(prompts)
low, median, high = (lengths.quantile(level) for level in (0.1, 0.5, 0.9))
for i, prompt in enumerate(prompts):
    print(f"{median[i]:.0f} tokens (80 % between {low[i]:.0f} and {high[i]:.0f}): {prompt}")
