"""Length predictions in the API process: batched, re-estimated, reloaded, tried in the shadow."""
