"""Judges: which of two answers a principle prefers, as a probability."""
