"""What came, held against what plans said: the clock, and which parts of a plan to believe."""
