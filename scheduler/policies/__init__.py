"""A problem in, a plan out: the simple rules, the published annealing, our own."""
