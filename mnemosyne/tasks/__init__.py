"""Optimizees: networks, data and losses. They know nothing of optimizers."""
