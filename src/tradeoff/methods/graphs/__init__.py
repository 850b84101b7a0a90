"""Training and inference on graphs."""
