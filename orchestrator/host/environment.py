"""What a study was run with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What this was run with: versions, machine, commit."""
    packages = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy", "pyautoattack", "energy-orchestrator")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this code: of its working tree, else of the image that it was built into."""
    this = Path(__file__)
    git = ["git", "-C", str(this.parent)]
    try:
        # Installed into somebody's project, this file lies in a repository that does not know it.
        for words in (["ls-files", "--error-unmatch", this.name], ["rev-parse", "HEAD"]):
            done = subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("ORCHESTRATOR_REVISION") or None
    return done.stdout.strip()
