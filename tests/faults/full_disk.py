"""A small file system of its own, filled to the last byte and emptied again."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount one at `folder`; says whether that was permitted."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is left on the file system of `folder` inside the block."""
    filler = folder / "filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            for length in (1 << 20, 1 << 12, 1):
                _write_until_full(file, length)
        yield
    finally:
        filler.unlink()


def _write_until_full(file: RawIOBase, length: int) -> None:
    try:
        while True:
            file.write(bytes(length))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
