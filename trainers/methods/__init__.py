"""Losses, weights and regularizers of adversarial training; `objective` is the front door."""

from trainers.methods.objective import objective

__all__ = ["objective"]
