"""Addresses of servers and databases with a password in them, which would end up in files and logs."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

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
