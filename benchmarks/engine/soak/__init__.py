"""The soak: short requests against the real engine for long, watched for leaks and losses."""
