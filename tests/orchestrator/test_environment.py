"""The commit that is recorded is that of this code, never of a project that it is installed into."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.host import environment


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with one commit, and our module in a folder of it that it ignores."""
    monkeypatch.delenv("ORCHESTRATOR_REVISION", raising=False)
    installed = tmp_path / "site-packages" / "environment.py"
    installed.parent.mkdir()
    shutil.copy(environment.__file__, installed)
    monkeypatch.setattr(environment, "__file__", str(installed))
    (tmp_path / ".gitignore").write_text("site-packages\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".gitignore")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path) -> None:
    git(folder, "-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "--quiet", "--message", "m")


def test_the_commit_of_a_project_around_the_package_is_not_ours(project, monkeypatch):
    assert environment.environment()["git_commit"] is None
    monkeypatch.setenv("ORCHESTRATOR_REVISION", "of the image")
    assert environment.environment()["git_commit"] == "of the image"


def test_the_commit_of_the_working_tree_is(project):
    git(project, "add", "--force", "site-packages")
    commit(project)
    assert environment.environment()["git_commit"] == git(project, "rev-parse", "HEAD")
