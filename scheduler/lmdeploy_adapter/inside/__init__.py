"""What runs in LMDeploy's process and names it: engine, pool, CPU device, server."""
