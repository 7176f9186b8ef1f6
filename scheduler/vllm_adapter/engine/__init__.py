"""What runs in vLLM's engine process: the scheduler class, and its look at the prefix cache."""
