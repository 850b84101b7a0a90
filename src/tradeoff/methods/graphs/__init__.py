"""Training and pruning of networks on graphs."""
