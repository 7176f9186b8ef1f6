"""Studies of the planner: its parts, its prices, its time, and how far it foresees."""
