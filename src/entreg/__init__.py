"""Entropy regularisation for any training loop."""
