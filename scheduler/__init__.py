"""The SLO-aware scheduler: numbers in, an admission order out."""
