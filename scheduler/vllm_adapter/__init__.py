"""Everything that names vLLM: scheduler class, queue, middleware, replay, server launch."""
