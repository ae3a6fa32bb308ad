"""Tables of measurements, and the page that keeps them."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
VERSIONS = ("torch", "ray", "optuna", "mlflow", "pyautoattack")


@dataclass(frozen=True)
class Table:
    """A claim's title, how it was measured, and its rows."""

    title: str
    how: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """A section of the page."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join([f"## {self.title}", "", self.how, "", *(f"| {' | '.join(line)} |" for line in lines)])


def keep(name: str, table: Table) -> None:
    """Put a table into `results.json` beside those of other benchmarks, and write RESULTS.md from all of them."""
    file = FOLDER / "results.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept[name] = {"table": asdict(table), "where": _machine(), "when": datetime.now(UTC).strftime("%Y-%m-%d")}
    file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    sections = []
    for entry in kept.values():
        content = {key: tuple(value) if key == "columns" else value for key, value in entry["table"].items()}
        content["rows"] = tuple(map(tuple, content["rows"]))
        sections.append(f"{Table(**content).markdown()}\n\n*{entry['when']}; {entry['where']}*")
    (FOLDER / "RESULTS.md").write_text("\n\n".join([_HEAD, *sections]) + "\n")


_HEAD = """# Measurements

Written by `make bench`. Both sides of a ratio are measured in one run, and it carries over to other machines better
than seconds: `median (middle half of the rounds)`. Some tables have no other side."""


def _machine() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in VERSIONS)
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {device}, Python {platform.python_version()}, {versions}"
