"""The emulated device: vLLM's engine on an executor that takes a profile's time only."""
