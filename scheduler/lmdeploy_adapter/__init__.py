"""LMDeploy as a second engine: what names it runs in an environment of its own."""
