"""Training pipelines, MLflow registry, benchmarks and the command line."""
