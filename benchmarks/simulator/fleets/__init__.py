"""Studies of several instances behind a router."""
