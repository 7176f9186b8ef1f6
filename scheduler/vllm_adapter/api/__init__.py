"""What runs in vLLM's API process: the middleware, its predictions, the live file read."""
