"""What became of requests, how long steps took, and what is learned from both."""
