"""The waiting queue served in a plan's order: its strands, its tiers, who waited longest."""
