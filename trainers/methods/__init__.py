"""Losses, weights and regularizers of adversarial training; `objective` is the front door."""

from trainers.methods.objectives import objective

__all__ = ["objective"]
