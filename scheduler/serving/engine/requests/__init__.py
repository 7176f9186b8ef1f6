"""What the engine process knows of its requests: intake, table, tenants, prefixes, estimates."""
