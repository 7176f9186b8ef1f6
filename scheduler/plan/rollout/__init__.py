"""The engine played forward under a plan: rows of requests, its clock and memory, outcomes."""
