"""One engine's requests, queue, plans, outcomes and tallies; names no engine."""
