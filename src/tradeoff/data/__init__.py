"""Data sets: an embedded default each, and the real one behind the same call."""
