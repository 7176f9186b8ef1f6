"""What runs in vLLM's worker processes: answers of given lengths."""
