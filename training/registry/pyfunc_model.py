"""The predictor as an MLflow pyfunc, logged as code: what ``mlflow.pyfunc.load_model`` runs.

For the registry's users and ``mlflow models serve``. The server loads the native directory
instead, because a pyfunc call costs milliseconds where the booster costs microseconds.
"""

from __future__ import annotations

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class OutputLengthModel(PythonModel):
    """Rows with ``prompt`` (also ``slo_class``, ``prompt_tokens`` if known) to token quantiles."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the native predictor directory that was logged beside this file."""
        from lengthwise.predictor.model import LengthPredictor

        self.predictor = LengthPredictor.load(context.artifacts["predictor"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, object] | None = None,
    ) -> pd.DataFrame:
        """One row per input row: ``predicted_tokens`` (median) and ``q<level>`` columns."""

        def column(name: str) -> list[object] | None:
            if name not in model_input:
                return None
            return [None if pd.isna(value) else value for value in model_input[name]]

        lengths = self.predictor.predict(
            list(model_input["prompt"]),
            slo_class=column("slo_class"),
            prompt_tokens=column("prompt_tokens"),
        )
        table = pd.DataFrame(
            lengths.quantiles, columns=[f"q{level:g}" for level in lengths.levels], dtype=float
        )
        table.insert(0, "predicted_tokens", lengths.median().astype(float))
        return table


set_model(OutputLengthModel())
