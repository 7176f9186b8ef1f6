"""How a plan is made: the engine played forward, what a plan is worth, and the search."""
