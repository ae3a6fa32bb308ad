"""Methods that other packages bring: entry points whose modules add rows to the tables when they are imported."""

from __future__ import annotations

from importlib.metadata import entry_points

from trainers.problems import InvalidInput

GROUP = "energy_orchestrator.methods"


def load_extensions() -> None:
    """Import every installed extension. Raises InvalidInput, naming the one that can't be."""
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise InvalidInput.single(
                f"extension {point.name}",
                f"{point.value} can't be loaded ({type(error).__name__}: {error}); mend it or uninstall its package",
            ) from error
