"""Everything that talks to MLflow: versions, aliases, metrics, promotions."""
