"""What runs in a server's API process: the middleware, its predictions, the live file read."""
