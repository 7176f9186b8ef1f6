"""Feature rows to quantiles of log-length; each estimator fits, predicts, saves itself."""
