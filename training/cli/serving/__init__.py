"""Commands that start a server, and those beside one."""
