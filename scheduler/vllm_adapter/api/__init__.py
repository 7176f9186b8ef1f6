"""What of the API process is vLLM's: its routes, its ``generate``, its batch runner."""
