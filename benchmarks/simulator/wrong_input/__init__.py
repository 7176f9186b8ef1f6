"""Studies of policies that are told wrong things."""
