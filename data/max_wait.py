"""How long anybody waits at most for the sake of a plan, if nobody says otherwise."""

MAX_WAIT_S = 120.0
