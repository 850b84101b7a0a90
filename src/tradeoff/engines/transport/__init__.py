"""Authenticated, metered messages between named parties over TCP."""
