"""A request's body: read in parts, understood by route, and split into sequences."""
