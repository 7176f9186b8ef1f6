"""The training pipeline, predictions of files, and what a predictor is worth."""
