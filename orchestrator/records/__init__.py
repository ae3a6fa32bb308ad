"""What a study remembers: its journal and Optuna's database, and what is read from them."""

from pathlib import Path

DEFAULT_STORAGE = Path("runs")  # the folder of all study folders, where no other is named
