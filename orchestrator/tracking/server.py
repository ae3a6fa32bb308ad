"""Where MLflow is, whether it answers, and runs on it that are made once. `mirror` keeps whole studies there.

Nothing but these two modules and `mirrored_run` talks to it. Making a run twice is harmless: it is found by a tag of
our own first.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.host.credentials import refuse_password
from orchestrator.host.databases import advice, try_connecting
from orchestrator.records import DEFAULT_STORAGE
from search_spaces.addresses import absolute_file, sqlite_address, sqlite_file
from search_spaces.study import Study, Tracking
from trainers.problems import InvalidInput

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run
    from rich.console import Console

RUN_TAG, KIND_TAG = "orchestrator.run", "orchestrator.kind"
UPLOAD_SECONDS = 120  # MLflow's own default: a server may pass a large file on before it answers
_ALLOWED = "http(s)://…, sqlite:///FILE or another database, e.g. postgresql://…"
_DATABASES = ("mssql", "mysql", "postgresql")
_LONGEST = 300  # characters of a complaint; a server may answer with a page
# How MLflow's client words them: it tries some again, and takes the others as they are.
_FOREIGN_ANSWER = re.compile(
    r"too many (?P<failing>\d+) error responses|failed with error code (?P<status>\d+) != |not in a valid JSON format"
)
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"  # MLflow reads it at every request


def tracking_uri(study: Study, storage: Path) -> str:
    """Where this study is tracked: its own setting, the environment, or a file beside the folders of studies.

    From wherever it is resumed that is the same file. Raises InvalidInput for an address with a password in it.
    """
    return _resolved(study.tracking.uri, storage)


def uri_of_no_study() -> str:
    """Where what belongs to no study is tracked: with the studies of the default folder, which is then made."""
    uri = _resolved(None, DEFAULT_STORAGE)
    if uri == _beside(DEFAULT_STORAGE):
        DEFAULT_STORAGE.mkdir(exist_ok=True)
    return uri


def _resolved(own: str | None, storage: Path) -> str:
    """An address of the user's own, the environment's, or a file in `storage`; raises as `tracking_uri`."""
    uri = own or os.environ.get("MLFLOW_TRACKING_URI") or _beside(storage)
    refuse_password(uri, "tracking.uri")
    return absolute_file(uri)


def _beside(storage: Path) -> str:
    return absolute_file(sqlite_address(storage / "mlflow.db"))


def check_reachable(uri: str, experiment: str = Tracking().experiment) -> None:
    """Raise InvalidInput within seconds if runs can't be sent to this experiment there.

    Nothing answers, something else than MLflow does, it refuses us, or the experiment has been deleted.
    """
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
        except urllib.error.HTTPError:
            pass  # it answers; what it refuses it will say when it is asked for more
        except (OSError, ValueError) as error:
            raise InvalidInput.single(
                "tracking.uri", f"{uri!r}: no MLflow server answers there ({outage(error)})"
            ) from error
    elif (file := sqlite_file(uri)) is not None:
        _check_file(uri, file)
        if not file.exists():
            return  # MLflow makes it
    elif _scheme(uri) not in _schemes():
        raise InvalidInput.single("tracking.uri", f"{uri!r}: allowed: {_ALLOWED}")
    elif _scheme(uri) in _DATABASES:
        _check_database(uri)
    try:
        _require_active(connected(uri).get_experiment_by_name(experiment), uri)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput.single("tracking.uri", f"{uri!r}: MLflow can't be used there: {outage(error)}") from error


def _require_active(experiment: Experiment | None, uri: str) -> None:
    """Raise InvalidInput for an experiment that has been deleted: MLflow keeps it and takes no runs for it."""
    if experiment is not None and experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise InvalidInput.single(
            "tracking.experiment",
            f"{experiment.name!r} has been deleted in MLflow; name another (tracking.experiment=OTHER), or bring it "
            f"back: MLFLOW_TRACKING_URI={shlex.quote(uri)} {restore}",
        )


def outage(error: Exception) -> str:
    """What went wrong between us and a server, in a line: what lies under the layers of a client that gave up."""
    import requests
    import urllib3.exceptions

    cause: BaseException | None = error
    while cause is not None:
        # With retries, though it be none, requests calls a silent server a connection that failed.
        if isinstance(cause, (TimeoutError, requests.Timeout, urllib3.exceptions.ReadTimeoutError)):
            return "it does not answer in time"
        if isinstance(cause, OSError) and cause.strerror and cause.filename is None:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    status = getattr(error, "get_http_status_code", int)()
    if status in (401, 403):
        return _explained(status)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _explained(error.response.status_code)  # of an upload
    if answer := _FOREIGN_ANSWER.search(str(error)):
        return _explained(int(answer["failing"] or answer["status"] or 200))
    said = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"


def _explained(status: int) -> str:
    """What an answer means that is not one of MLflow's own."""
    if status in (401, 403):
        return f"it refuses us ({status}); set MLFLOW_TRACKING_USERNAME and …_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if status == 413:
        return "a proxy before it refuses requests of that size (413); raise its limit"
    if status == 429 or status >= 500:
        return f"it answers with error {status}; its log says why"
    return f"what answers there is not MLflow ({status})"


def _check_database(uri: str) -> None:
    """Raise InvalidInput if nothing answers: MLflow itself would try for a minute, and write about it."""
    try:
        try_connecting(uri)
    except Exception as error:
        raise InvalidInput.single("tracking.uri", f"{uri!r} can't be opened: {advice(error)}") from error


def _check_file(uri: str, file: Path) -> None:
    """Raise InvalidInput unless an SQLite database can be in this file."""
    if file.is_dir():
        raise InvalidInput.single(
            "tracking.uri", f"{uri!r}: is a folder; name a file, e.g. sqlite:///{file / 'mlflow.db'}"
        )
    if not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        raise InvalidInput.single("tracking.uri", f"{uri!r}: {file.parent} is not a folder that can be written")
    if file.exists() and not os.access(file, os.W_OK):
        raise InvalidInput.single("tracking.uri", f"{uri!r}: the file can't be written")


def _scheme(uri: str) -> str:
    """`postgresql` of `postgresql+psycopg2://…`; empty if there is none."""
    scheme, separator, _ = uri.partition("://")
    return scheme.partition("+")[0] if separator else ""


def _schemes() -> set[str]:
    """Of servers that can't be asked at once: MLflow's databases, and what other packages add to MLflow."""
    added = {point.name for point in entry_points(group="mlflow.tracking_store")}
    return {"databricks", *_DATABASES} | added


def log_folder(
    uri: str, console: Console, *, identity: str, kind: str, name: str, time: float, params: Mapping[str, str],
    metrics: Mapping[str, float], artifacts: Sequence[Path],
) -> None:  # fmt: skip
    """One run with files and folders, once for each `identity`; metrics are those of the moment `time` (Unix seconds).

    Says where it went. A server that fails is a warning: what is on disk stands.
    """
    from mlflow.entities import Metric, Param

    try:
        client = connected(uri)
        experiment = find_experiment(client, uri, Tracking().experiment)
        tags = {KIND_TAG: kind, RUN_TAG: identity}
        run_id = find_or_create(client, experiment, identity, name, tags).info.run_id
        client.log_batch(
            run_id,
            params=[Param(key, value) for key, value in params.items()],
            metrics=[Metric(key, value, int(time * 1000), 0) for key, value in metrics.items()],
        )
        with uploading():
            for path in artifacts:
                if path.is_dir():
                    client.log_artifacts(run_id, str(path), path.name)
                else:
                    client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        said = f"MLflow has not got it ({outage(error)}); the same command again sends it"
        console.print(said, style="yellow")
    else:
        console.print(f"MLflow: {uri}", soft_wrap=True)


def connected(uri: str) -> MlflowClient:
    """A client that gives up within seconds, says nothing and reports to nobody."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault(_TIMEOUT, "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    # After the import, which sets levels of its own.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # What it raises it also writes, with a stack trace a call: an outage is told by whoever catches it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def uploading() -> Iterator[None]:
    """Requests inside may take as long as a large file needs; all others are to notice an outage within seconds."""
    usual = os.environ[_TIMEOUT]
    os.environ[_TIMEOUT] = str(max(int(usual), UPLOAD_SECONDS))
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = usual


def find_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment of this name, made if there is none; its artifacts lie beside an SQLite file."""
    found = client.get_experiment_by_name(name)
    _require_active(found, uri)
    if found is not None:
        return str(found.experiment_id)
    file = sqlite_file(uri)
    location = None if file is None else (file.parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def find_or_create(client: MlflowClient, experiment: str, identity: str, name: str, tags: Mapping[str, str]) -> Run:
    """The run that is tagged with this identity, made with these tags if there is none."""
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
    return found[0] if found else client.create_run(experiment, run_name=name, tags=dict(tags))
