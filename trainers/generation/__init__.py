"""Images from a classifier: starts of a class, Langevin dynamics on its energy, and how good they are."""
