"""Reading and changing torch models through torch.fx."""
