"""Two-party computation of neural networks on additively shared fixed-point data."""
