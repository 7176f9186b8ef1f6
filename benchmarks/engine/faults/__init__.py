"""The fault table: each fault on the real engine, stock vLLM beside ours."""
