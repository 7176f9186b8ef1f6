"""A corpus made of templates, for a machine that has no data."""
