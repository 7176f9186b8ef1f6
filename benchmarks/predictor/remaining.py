"""What is left, given what has been said: error of remaining() against tokens generated.

    python -m benchmarks.predictor.remaining --packs gpt35 --seeds 3

For the test answers longer than g tokens: the mean absolute error of the median of remaining(g),
of the unconditional guess max(1, median - g), and of the class's own distribution given g.
"""

from __future__ import annotations

import numpy as np

from benchmarks.common import finish, fitted, note, parser, print_table
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.fitting.metrics import mae

GENERATED = (0, 16, 32, 64, 128, 256, 512, 1024)
MIN_ROWS = 40


def main() -> None:
    options = parser(__doc__).parse_args()
    result: dict[str, list[dict[str, float]]] = {}
    for pack in options.packs:
        note(pack)
        parts, predictor = fitted(pack, options.seeds[0], options.jobs)
        test = parts["test"]
        classes = test["slo_class"].tolist()
        predicted = predictor.predict(
            test["prompt"].tolist(), classes, test["prompt_tokens"].tolist()
        )
        prior = LengthDistribution.from_rows(
            predictor.levels, np.stack([predictor.class_prior(name) for name in classes])
        )
        y = test["output_tokens"].to_numpy(float)
        result[pack] = []
        for generated in GENERATED:
            running = np.flatnonzero(y > generated)
            if running.size < MIN_ROWS:
                break
            left = y[running] - generated
            g = np.full(running.size, float(generated))
            result[pack].append(
                {
                    "generated": generated,
                    "running": running.size,
                    "mean_left": float(left.mean()),
                    "unconditional": mae(
                        left, np.maximum(predicted[running].median() - generated, 1.0)
                    ),
                    "remaining": mae(left, predicted[running].remaining(g).median()),
                    "class_remaining": mae(left, prior[running].remaining(g).median()),
                }
            )
        print(f"\n{pack}: mean absolute error of what is left, tokens\n")
        header = list(result[pack][0])
        print_table(header, [[f"{row[h]:.0f}" for h in header] for row in result[pack]])
    finish("remaining", result)


if __name__ == "__main__":
    main()
