"""Inference on data that the model owner must not see."""
