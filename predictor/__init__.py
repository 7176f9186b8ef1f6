"""Learned output lengths: P(answer length | prompt), calibrated, saved as plain files."""
