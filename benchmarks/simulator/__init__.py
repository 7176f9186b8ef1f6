"""Studies on the simulated engine: the grids of policies, and rooms for narrower questions."""
