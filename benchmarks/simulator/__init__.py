"""Studies on the simulated engine."""
