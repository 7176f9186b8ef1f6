"""A server's process, whatever serves: its address, run files, signals and end."""
