"""Studies on the real engine."""
