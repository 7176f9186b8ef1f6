"""The console command, a file a group of commands."""
