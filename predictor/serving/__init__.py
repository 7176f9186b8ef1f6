"""What follows a predictor while it serves: its correction and its drift."""
