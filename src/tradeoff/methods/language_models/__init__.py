"""Language models: their training, their attention and their decoding."""
