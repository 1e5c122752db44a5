"""Clients that stall, or come in hundreds: one server for the page and the API."""

import resource
import socket
import threading
from contextlib import ExitStack

import anyio
import httpx
import pytest
from anyio import to_thread
from starlette.responses import Response, StreamingResponse

from minigpt4.serve import http
from minigpt4.serve.address import bind
from tests.serve.asking import serving
from tests.waiting import LIMIT

REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


def connect(url: str, later: ExitStack) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return later.enter_context(socket.create_connection((host, int(port)), timeout=LIMIT))


def ended(client: socket.socket) -> bool:
    """Waits until the server has closed a connection, or said something."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def drip(client: socket.socket, piece: bytes) -> None:
    """Sends a little at a time until the server has closed the connection."""
    client.settimeout(0.05)
    for _ in range(20 * LIMIT):
        try:
            client.sendall(piece)
            while client.recv(9999):
                pass
            return
        except TimeoutError:
            continue
        except OSError:
            return
    pytest.fail("the connection stayed open")


def works(url: str) -> bool:
    return httpx.get(f"{url}/", timeout=LIMIT).status_code in (200, 404)


@pytest.mark.slow
def test_headers_that_never_end_are_given_up(server, monkeypatch):
    monkeypatch.setattr(http, "HEADERS_WITHIN", 0.3)
    with ExitStack() as later:
        silent = connect(server, later)
        dripping = connect(server, later)
        dripping.sendall(REQUEST)
        drip(dripping, b"X-Header: 1\r\n")
        assert ended(silent)
    assert works(server)


@pytest.mark.slow
def test_a_second_request_has_the_same_deadline(server, monkeypatch):
    monkeypatch.setattr(http, "HEADERS_WITHIN", 0.3)
    with ExitStack() as later:
        client = connect(server, later)
        client.sendall(REQUEST + b"\r\n" + REQUEST)
        assert client.recv(12).startswith(b"HTTP/1.1 ")
        drip(client, b"X-Header: 1\r\n")


@pytest.mark.slow
def test_so_has_the_rest_of_a_request_that_was_answered(server, monkeypatch):
    monkeypatch.setattr(http, "HEADERS_WITHIN", 0.3)
    with ExitStack() as later:
        client = connect(server, later)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: other.example\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 421"
        drip(client, b"a")


def test_hundreds_of_open_connections_keep_nobody_out(server, monkeypatch):
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 50)
    with ExitStack() as later:
        clients = [connect(server, later) for _ in range(320)]
        assert works(server)
        assert all(ended(client) for client in clients[:200])


@pytest.mark.slow
def test_a_connection_with_a_request_under_way_is_kept(monkeypatch):
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 10)
    started, go = threading.Event(), threading.Event()

    async def slow(scope, receive, send):
        if scope["type"] == "http":
            if scope["path"] == "/slow":
                started.set()
                await to_thread.run_sync(go.wait, LIMIT)
            await Response("done")(scope, receive, send)

    with serving(slow, bind("127.0.0.1", 0)) as url, ExitStack() as later:
        asking = connect(url, later)
        asking.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert started.wait(LIMIT)
        clients = [connect(url, later) for _ in range(40)]
        assert works(url) and all(ended(client) for client in clients[:20])
        go.set()
        assert asking.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.slow
def test_who_does_not_read_an_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(http, "READ_WITHIN", 0.3)
    left = threading.Event()

    async def endless(scope, receive, send):
        async def stream():
            while True:
                yield bytes(100_000)
                await anyio.sleep(0)

        if scope["type"] == "http":
            try:
                await StreamingResponse(stream())(scope, receive, send)
            finally:
                left.set()

    with serving(endless, bind("127.0.0.1", 0)) as url, ExitStack() as later:
        connect(url, later).sendall(REQUEST + b"\r\n")
        assert left.wait(LIMIT)


def test_the_limit_leaves_files_for_others(monkeypatch):
    for files, most in ((1024, 512), (100_000, 1000), (resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert http.most_connections() == most
