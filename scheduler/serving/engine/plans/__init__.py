"""Plans in the engine: snapshots they are made of, the thread, what is in force, each step."""
