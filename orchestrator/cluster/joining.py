"""Whether the Ray that a user names can be joined: asked in Python, within seconds, before Ray is.

Ray itself would try for minutes, and ends a process that lacks its token with a stack trace of C++.
"""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from trainers.problems import InvalidInput

JOB_VARIABLE = "ORCHESTRATOR_JOB"  # in the environment of a driver that is a job of a cluster: its name
_ANSWER_SECONDS = 10.0
_ADDRESS = re.compile(r"(?P<host>[^/\s:\[\]]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")
_HEAD = "HOST:PORT of `ray start --head` (usually 6379)"
_DASHBOARD = "http://HEAD:8265, the dashboard of the cluster"


def address_in_use(address: str | None) -> str | None:
    """The cluster to join: the option, else RAY_ADDRESS; None means a private one."""
    chosen = address or os.environ.get("RAY_ADDRESS")
    return None if chosen in (None, "", "local") else chosen


def checked_address(address: str | None) -> str | None:
    """The cluster to join, not asked yet. Raises InvalidInput for what can't be an address of Ray."""
    chosen = address_in_use(address)
    if chosen is not None and chosen != "auto" and not _is_address(chosen):
        field = "--address" if address else "RAY_ADDRESS"
        raise InvalidInput.single(field, f"{chosen!r}: allowed: {_HEAD}, auto, or local for a private Ray")
    return chosen


def check_answers(address: str | None) -> None:
    """Raise unless the Ray at `address` answers and takes our token, within seconds; a private one is not asked.

    InvalidInput for what can't be an address of Ray, ConnectionError for all else.
    """
    chosen = checked_address(address)
    if chosen is None:
        return
    secret = token(found_by_itself=chosen == "auto")
    place = _found() if chosen == "auto" else chosen
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise ConnectionError(
            f"the Ray cluster can't be reached: nothing answers at {place} ({error.strerror or error})"
        ) from error
    _ask_head(place, secret)


def check_dashboard_answers(address: str, field: str) -> None:
    """The same for the address of a dashboard, through which jobs are submitted. `field` is where it came from."""
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", address):
        raise InvalidInput.single(field, f"{address!r}: allowed: {_DASHBOARD}")
    secret = token()
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version")
    if secret is not None:
        request.add_header("Authorization", f"Bearer {secret}")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            is_ray = "ray_version" in json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ConnectionError(wrong_token(address)) from error
        is_ray = False
    except (ValueError, TypeError, HTTPException):
        is_ray = False
    except OSError as error:
        raise ConnectionError(f"no Ray dashboard answers at {address} ({error}); expected: {_DASHBOARD}") from error
    if not is_ray:
        raise ConnectionError(f"{address} answers, but is not Ray's dashboard; expected: {_DASHBOARD}")


def wrong_token(address: str) -> str:
    """What to say when a cluster does not know us."""
    return f"{address} wants the token of its cluster: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE"


def token(*, found_by_itself: bool = False) -> str | None:
    """The token that Ray would send from this environment; None if it would send none.

    With RAY_AUTH_MODE unset, it does so to a cluster that it has `found_by_itself` alone. Raises ConnectionError for a
    token that is wanted and can't be read.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if (mode is None and not found_by_itself) or (mode is not None and mode.lower() != "token"):
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        content = file.read_text().strip()
        why = "is empty"
    except (OSError, ValueError) as error:
        content, why = "", f"can't be read ({getattr(error, 'strerror', None) or error})"
    if content:
        return content
    if mode is None and not named:
        return None
    source = "RAY_AUTH_TOKEN_PATH" if named else "RAY_AUTH_MODE=token"
    raise ConnectionError(f"{source}: the token file {file} {why}; name the cluster's in RAY_AUTH_TOKEN_PATH")


def _is_address(text: str) -> bool:
    parts = _ADDRESS.fullmatch(text)
    return parts is not None and 0 < int(parts["port"]) < 1 << 16


def _found() -> str:
    """Where the Ray runs that Ray finds by itself."""
    from orchestrator.cluster.connection import prepare

    prepare(private=False)
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        raise ConnectionError(f"auto: no Ray runs on this machine; give {_HEAD}") from error


def _ask_head(address: str, secret: str | None) -> None:
    """Call the head's own health check. Its client in Ray has no time limit of ours and writes to the terminal."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # Ray's certificates are Ray's matter
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        metadata = () if secret is None else (("authorization", f"Bearer {secret}"),)
        try:
            alive(b"", timeout=_ANSWER_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ConnectionError(wrong_token(address)) from error
            raise ConnectionError(
                f"{address} answers, but not as the head of a Ray cluster; expected: {_HEAD}, not its dashboard (8265) "
                "or client port (10001)"
            ) from error
