"""The console command: a file a group of commands; servers and comparisons have rooms."""
