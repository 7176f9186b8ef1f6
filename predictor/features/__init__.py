"""A prompt's text to the columns an estimator reads."""
