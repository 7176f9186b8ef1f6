"""What runs in vLLM's engine process: the scheduler class, its queue, its plans, its tallies."""
