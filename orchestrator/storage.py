"""Where Optuna keeps a study: a file in the study's folder, or a database of the user's own."""

from __future__ import annotations

from pathlib import Path

from search_spaces.study import Study
from trainers.problems import InvalidInput


def storage_url(study: Study, folder: Path) -> str:
    """Optuna's storage of the study in `folder`."""
    return study.search.storage or f"sqlite:///{folder / 'optuna.db'}"


def check_opens(study: Study) -> None:
    """Raise InvalidInput if the user's own database can't be opened."""
    if study.search.storage is None:
        return
    import optuna

    url = storage_url(study, Path())
    try:
        optuna.storages.RDBStorage(url)
    except Exception as error:
        raise InvalidInput.single("search.storage", f"{url!r} can't be opened: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What Optuna or SQLAlchemy complains about, in a line: its cause names the driver or the host that is missing."""
    return str(error.__cause__ or error).strip().split("\n")[0]
