"""Addresses of servers and databases: which are files, and which have a password that would end up in logs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, unquote

_SQLITE = "sqlite:///"
# Clients of databases take what stands before the @ as it is: a #, ? or [ in a password does not end it there. A
# number up to a slash is a port.
_PASSWORD = re.compile(r"[^:/?#@]+://[^:/?#@\[]*:(?!\d+(?:[/?#]|$))[^@]*@")
REFUSAL = (
    "has a password in it, which would be written into the study; give it in the environment instead "
    "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PGPASSWORD or MYSQL_PWD)"
)


def has_password(uri: str) -> bool:
    """Whether an address holds a password: `scheme://user:password@host/…`, or in a query."""
    queried = parse_qs(uri.partition("?")[2])
    return _PASSWORD.match(uri) is not None or any("pass" in key.lower() for key in queried)


def sqlite_address(file: str | Path) -> str:
    """The address of an SQLite database in this file, as SQLAlchemy reads addresses: a % in a path is written %25."""
    return _SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def sqlite_file(address: str) -> Path | None:
    """The file of an SQLite database; None for a server."""
    if not address.startswith(_SQLITE):
        return None
    return Path(unquote(address.removeprefix(_SQLITE).partition("?")[0]))


def absolute_file(address: str) -> str:
    """The address of a database; if that is a file, by its absolute path: the same from any working directory."""
    file = sqlite_file(address)
    if file is None:
        return address
    _, mark, options = address.partition("?")
    return f"{sqlite_address(file.absolute())}{mark}{options}"
