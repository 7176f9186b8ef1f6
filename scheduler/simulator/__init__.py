"""A step-level engine that runs the same policy objects as the real one."""
