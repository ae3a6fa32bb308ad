"""Databases of the user's own, for Optuna or for MLflow: what one that fails complains about, and how long to wait."""

from __future__ import annotations

ALLOWED = "postgresql+psycopg2://USER@HOST/DATABASE, mysql+pymysql://USER@HOST/DATABASE or sqlite:///FILE"
_CONNECT_SECONDS, _SILENT_MILLISECONDS = 10, 30_000


def try_connecting(url: str) -> None:
    """Raise whatever the database at this address raises, within seconds."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    create_engine(url, poolclass=NullPool, connect_args=time_limits(url)).connect().close()


def time_limits(url: str) -> dict[str, int]:
    """What keeps a client from waiting for ever for a host that is silent; drivers that we do not know have none."""
    from sqlalchemy.engine import make_url

    driver = make_url(url).get_driver_name()
    if driver in ("psycopg", "psycopg2"):
        return {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": _SILENT_MILLISECONDS}
    return {"connect_timeout": _CONNECT_SECONDS} if driver in ("mysqldb", "pymysql") else {}


def reason(error: Exception) -> str:
    """What Optuna or SQLAlchemy complains about, in a line: its cause names the driver or the host that is missing."""
    return str(error.__cause__ or error).strip().split("\n")[0]


def advice(error: Exception) -> str:
    """The reason, and what may be written instead where the address itself is at fault."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    said = reason(error)
    if isinstance(error, ImportError):
        return f"{said}; install it, or name a driver that is installed here: {ALLOWED}"
    return f"{said}; allowed: {ALLOWED}" if isinstance(error, (ArgumentError, NoSuchModuleError)) else said
