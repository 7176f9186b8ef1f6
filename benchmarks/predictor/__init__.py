"""Studies of the predictor."""
