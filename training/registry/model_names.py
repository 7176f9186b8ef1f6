"""What the registered model and its aliases are called."""

from __future__ import annotations

MODEL_NAME = "output-length"
CHAMPION = "champion"
CHALLENGER = "challenger"
SHADOW = "shadow"
DEFAULT_PREDICTOR = f"models:/{MODEL_NAME}@{CHAMPION}"
