"""What starts vLLM servers and looks at the vLLM that is installed."""
