"""What the user left out comes from the recipe and the catalog; what contradicts the catalog is a problem."""

from trainers.filling.experiment import fill

__all__ = ["fill"]
