"""Pictures from the web: strangers name the address, so only public ones are asked, and only for so much."""

import http.server
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import anyio
import openai
import pytest

from minigpt4.common.errors import UserError
from minigpt4.serve.api import remote
from minigpt4.serve.api.service import Limits, Service
from tests.serve.asking import NAME, SCENES, client_of, image_part, running

PICTURE = SCENES[0].read_bytes()
ALL = ("*",)


class Site(http.server.BaseHTTPRequestHandler):
    """A web server; its paths say how it behaves."""

    asked: list[str] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        Site.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/raw":  # as old servers write it
            self.wfile.write("HTTP/1.1 302 Found\r\nLocation: /Zürich%20%2F/photo(1).jpg?a=%25\r\n".encode())
            self.wfile.write(b"Content-Length: 0\r\n\r\n")
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the client has left
                while True:  # each byte in time, all together not
                    time.sleep(0.1)
                    self.wfile.write(b"a")
        else:
            self.send_response(200)
            self.end_headers()
            bodies = {
                "/picture": PICTURE,
                "/Z%C3%BCrich%20%2F/photo(1).jpg?a=%25": PICTURE,
                "/host": self.headers["Host"].encode(),
            }
            self.wfile.write(bodies.get(self.path, bytes(100_000)))
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def port():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def site(port, monkeypatch):
    """A site that counts as public, at 127.0.0.1; all of 127.0.0.2 and so on does not."""
    real = remote.is_public
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1" or real(address))
    Site.asked = []
    return f"http://127.0.0.1:{port}"


def fetch(url: str, max_bytes: int = 50_000, hosts: Sequence[str] = ALL) -> bytes:
    return anyio.run(partial(remote.download, url, hosts, max_bytes))


def test_pictures_are_fetched_and_redirects_followed(site):
    assert fetch(f"{site}/picture") == PICTURE
    assert fetch(f"{site}/to//to//picture") == PICTURE  # relative
    assert fetch(f"{site}/to/{site}/picture") == PICTURE
    assert fetch(f"{site}/raw") == PICTURE
    assert fetch(f"{site}/Zürich %2F/photo(1).jpg?a=%25") == PICTURE  # as it stands in a browser's address line


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", "the server answered 404"),
        ("/large", "larger than 50000 bytes"),
        ("/to//to//to//to//picture", "more than 3 redirects"),
        ("/to/file:///etc/passwd", "not an http"),
        ("/to/ftp://127.0.0.1/x", "not an http"),
    ],
)
def test_answers_that_are_no_picture(site, path, words):
    with pytest.raises(UserError, match=rf"the picture '.*' can't be fetched: .*{words}.*Send it as a data: URL"):
        fetch(site + path)


@pytest.mark.slow
def test_slow_answers(site, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    with pytest.raises(UserError, match="it took more than"):
        fetch(f"{site}/slow")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.2",
        "localhost",
        "2130706434",  # 127.0.0.2 as one number
        "0x7f.2",
        "017700000002",
        "127.2",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
    ],
)
def test_redirects_to_the_inside_are_not_followed(site, port, host, monkeypatch):
    connect, connected = remote.httpcore.AnyIOBackend.connect_tcp, []

    async def noted(self, host, *args, **options):
        connected.append(host)
        return await connect(self, host, *args, **options)

    monkeypatch.setattr(remote.httpcore.AnyIOBackend, "connect_tcp", noted)
    if host == "localhost":
        monkeypatch.setattr(remote, "is_public", lambda address: len(connected) < 1)
    with pytest.raises(UserError, match="has no public address"):
        fetch(f"{site}/to/http://{host}:{port}/picture")
    assert connected == ["127.0.0.1"]
    assert Site.asked == [f"/to/http://{host}:{port}/picture"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("172.16.5.5", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),  # carriers' own
        ("127.8.8.8", False),
        ("169.254.169.254", False),  # clouds tell their machines' secrets there
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("192.0.0.9", False),
        ("192.0.0.192", False),  # Oracle's clouds, there
        ("168.63.129.16", False),  # Azure's, there
        ("198.19.0.1", False),
        ("192.31.196.1", True),
        ("2620:4f:8000::1", True),
        ("2001:20::1", False),
        ("5f00::1", False),
        ("100::1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:8.8.8.8", False),  # an IPv4 address in disguise; a name never needs one
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("192.88.99.1", False),
        ("3fff:fff::1", False),
        ("fec0::1", False),
    ],
)
def test_what_is_public(address, public):
    assert remote.is_public(address) is public


def test_a_name_that_changes_its_address_is_looked_up_once(site, port, monkeypatch):
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])

    async def rebinding(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(remote.anyio, "getaddrinfo", rebinding)
    assert fetch(f"http://rebinding.example:{port}/picture") == PICTURE
    assert next(answers) == "127.0.0.2"  # the first was enough
    with pytest.raises(UserError, match="'rebinding.example' has no public address"):
        fetch(f"http://rebinding.example:{port}/picture")


def test_only_hosts_of_the_list_are_asked(site, port, monkeypatch):
    asked = []

    async def found(host, port, **_):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(remote.anyio, "getaddrinfo", found)
    hosts = ("pictures.example", "*.cdn.example")
    for host in ("pictures.example", "Pictures.Example", "a.cdn.example", "user@pictures.example"):
        assert fetch(f"http://{host}:{port}/picture", hosts=hosts) == PICTURE
    assert fetch(f"http://pictures.example:{port}/to/http://a.cdn.example:{port}/picture", hosts=hosts) == PICTURE
    asked.clear()
    for host in ("cdn.example", "pictures.example.org", "127.0.0.1", "pictures.example@evil.example", "[::1]"):
        for url in (f"http://{host}:{port}/picture", f"http://pictures.example:{port}/to/http://{host}:{port}/picture"):
            with pytest.raises(UserError, match="this server fetches none from '.*'. Send it as a data: URL"):
                fetch(url, hosts=hosts)
    assert set(asked) == {"pictures.example"}  # nobody learns which other names there are


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 200 OK\r\n" + b"a" * 10**6]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_answers_that_break_off(site, answer, scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def respond():
            connection, _ = server.accept()
            with connection:
                connection.recv(9999)
                connection.sendall(answer)

        threading.Thread(target=respond).start()
        with pytest.raises(UserError, match="can't be fetched: .* Send it as a data: URL"):
            fetch(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/")


def test_nobody_learns_which_inner_names_there_are(site, port, monkeypatch):
    async def inner(host, port, **_):
        if host == "db.inner":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(remote.anyio, "getaddrinfo", inner)
    refusals = []
    for host in ("db.inner", "no.inner"):
        with pytest.raises(UserError) as error:
            fetch(f"http://{host}:{port}/")
        refusals.append(str(error.value).replace(host, "it"))
    assert refusals[0] == refusals[1]


def test_one_inner_address_among_several_is_too_many(site, port, monkeypatch):
    async def both(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", "10.0.0.1")]

    monkeypatch.setattr(remote.anyio, "getaddrinfo", both)
    with pytest.raises(UserError, match="has no public address"):
        fetch(f"http://both.example:{port}/picture")


def test_the_name_goes_along_with_the_request(site, port, monkeypatch):
    """Sites that share an address, and certificates, need it."""

    async def found(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(remote.anyio, "getaddrinfo", found)
    assert fetch(f"http://shared.example:{port}/host") == f"shared.example:{port}".encode()


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://[::1",
        "http://a:b/",
        "http://a:99999/",
        "http://\x00/",
        "http://a b/",
        "//x",
        "x",
        "http://xn--a/",
        "http://" + "a" * 300 + "/",
        "http://.../",
    ],
)
def test_broken_addresses(url):
    with pytest.raises(UserError, match="can't be fetched"):
        fetch(url)


def test_what_answers_is_no_web_server(monkeypatch, site):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            connection.sendall(b"220 ready\r\n\r\n")
            connection.close()

        threading.Thread(target=answer).start()
        with pytest.raises(UserError, match="not an answer of a web server"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/")


@pytest.mark.slow
def test_over_the_api(tiny, site, port):
    with running(Service(tiny, NAME, Limits(remote_images=("127.0.0.1", "127.0.0.2")))) as url:
        client = client_of(url)

        def ask(address: str) -> str:
            messages = [{"role": "user", "content": [image_part(address), {"type": "text", "text": "What is this?"}]}]
            return client.chat.completions.create(model=NAME, messages=messages).choices[0].message.content

        assert ask(f"{site}/picture")
        for address, words in (
            (f"http://127.0.0.2:{port}/picture", "has no public address"),
            (f"{site}/zeros", "can't be read as a picture"),
            ("file:///etc/passwd", "not an http"),
            (f"http://localhost:{port}/picture", "this server fetches none from 'localhost'"),
        ):
            with pytest.raises(openai.BadRequestError, match=words):
                ask(address)
