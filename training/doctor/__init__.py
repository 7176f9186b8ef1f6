"""What is installed, what is missing, what to do about it."""
