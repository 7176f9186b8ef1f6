"""Training a predictor from tables, and measuring it."""
