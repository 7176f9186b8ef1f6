"""What a request, a workload and a prompt table are, and where they come from."""
