"""What the registered model, its aliases and our tags are called."""

from __future__ import annotations

MODEL_NAME = "output-length"
CHAMPION = "champion"
CHALLENGER = "challenger"
SHADOW = "shadow"
DEFAULT_PREDICTOR = f"models:/{MODEL_NAME}@{CHAMPION}"

KIND_TAG = "lengthwise.kind"
MODEL_ID_TAG = "lengthwise.model_id"
