"""Orders to start the search from: selection, last plan, long waiters in front."""
