"""An address that is no Ray's, and a token that is missing, are said within seconds and before Ray is asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from orchestrator.cluster import joining
from orchestrator.cluster.joining import check_answers, check_dashboard_answers
from trainers.problems import InvalidInput

SECRET = "5e"


@pytest.fixture(autouse=True)
def no_settings_of_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def head() -> Iterator[str]:
    """Answers as a Ray head does that has a token."""

    def alive(_: bytes, context: grpc.ServicerContext) -> bytes:
        if ("authorization", f"Bearer {SECRET}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    methods = {"CheckAlive": grpc.unary_unary_rpc_method_handler(alive)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def web() -> Iterator[str]:
    """A web server: below /ray it answers as Ray's dashboard does, elsewhere as anybody."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == f"Bearer {SECRET}"
            is_ray = self.path == "/ray/api/version"
            self.send_response(200 if known or not is_ray else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": "2"} if is_ray else []).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the token of `head` and `web`, named in the environment."""
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    return file


@pytest.mark.parametrize(
    "address", ["foo", "foo:", ":6379", "foo:0", "foo:66666", "ray://127.0.0.1:10001", "http://127.0.0.1:8265", "a b:1"]
)
def test_what_can_be_no_address_is_refused_with_what_can(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"--address: '.*': allowed: HOST:PORT of `ray start --head`"):
        check_answers(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InvalidInput, match="RAY_ADDRESS: "):
        check_answers(None)


def test_a_private_ray_needs_no_answer() -> None:
    check_answers("local")
    check_answers(None)


def test_a_head_is_joined_with_its_token_alone(head: str, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_answers(head)
    token.write_text("another")
    with pytest.raises(ConnectionError, match=f"{head} wants the token of its cluster: RAY_AUTH_MODE=token"):
        check_answers(head)
    monkeypatch.delenv("RAY_AUTH_MODE")
    token.write_text(SECRET)
    with pytest.raises(ConnectionError, match="wants the token"):  # Ray does not send it then
        check_answers(head)


def test_a_token_that_can_not_be_read_is_named(head: str, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, why in (("", "is empty"), (None, "No such file")):
        if content is None:
            token.unlink()
        else:
            token.write_text(content)
        with pytest.raises(ConnectionError, match=f"RAY_AUTH_TOKEN_PATH: the token file {token} .*{why}"):
            check_answers(head)
        with pytest.raises(ConnectionError, match="RAY_AUTH_TOKEN_PATH: the token file"):
            check_dashboard_answers("http://127.0.0.1:9", "--address")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    with pytest.raises(ConnectionError, match=r"RAY_AUTH_MODE=token: the token file .*/\.ray/auth_token can't be read"):
        check_answers(head)


def test_another_server_is_not_taken_for_ray(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionError, match=f"{web} answers, but not as the head of a Ray cluster"):
        check_answers(web)
    with pytest.raises(ConnectionError, match="is not Ray's dashboard; expected: http://HEAD:8265"):
        check_dashboard_answers(f"http://{web}", "--address")
    monkeypatch.setattr(joining, "_ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="not as the head"):
            check_answers(address)
        with pytest.raises(ConnectionError, match="no Ray dashboard answers"):
            check_dashboard_answers(f"http://{address}", "--address")


def test_a_dashboard_answers_with_its_token_alone(web: str, token: Path) -> None:
    check_dashboard_answers(f"http://{web}/ray/", "--address")
    token.write_text("another")
    with pytest.raises(ConnectionError, match="wants the token"):
        check_dashboard_answers(f"http://{web}/ray", "--address")
    with pytest.raises(InvalidInput, match=f"RAY_API_SERVER_ADDRESS: '{web}': allowed: http://HEAD:8265"):
        check_dashboard_answers(web, "RAY_API_SERVER_ADDRESS")
