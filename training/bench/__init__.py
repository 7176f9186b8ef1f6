"""Arms compared on the same requests, on the real engine and on the simulated one."""
