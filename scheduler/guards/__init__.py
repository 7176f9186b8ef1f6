"""What stands around a policy: fairness between tenants, and turning requests away."""
