"""Several instances: what is known of each, what was sent to it, and where the next one goes."""
