"""What both doors refuse: other hosts, and requests that are too large in one way or another."""

import base64
import json

import gradio as gr
import httpx
import pytest
from gradio import networking
from pydantic import ValidationError

from minigpt4.serve.address import bind, is_among, known_hosts
from minigpt4.serve.api.protocol import ChatRequest
from minigpt4.serve.errors import ApiError
from minigpt4.serve.middleware import MAX_VALUES, require_few_values
from minigpt4.serve.web import server
from tests.serve.asking import NAME, SCENES, user
from tests.serve.conftest import free_port

JSON = {"Content-Type": "application/json"}


def status_for(url: str, host: str) -> int:
    return httpx.get(f"{url}/", headers={"Host": host}, follow_redirects=True).status_code


@pytest.mark.slow
def test_another_host_is_refused(server):
    """A page of another site may have given its name this address."""
    for host in ("localhost", "localhost:1", "LocalHost:8000", "127.0.0.1", "[::1]", "[::1]:80", "localhost."):
        assert status_for(server, host) in (200, 404)  # the API has nothing there
    for host in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "[::2]",
        "::1",
        "",
        "a" * 999,
    ):
        answer = httpx.post(f"{server}/gradio_api/upload", headers={"Host": host})
        assert answer.status_code == 421
        assert "start it with --allowed-hosts" in answer.text and len(answer.text) < 400


def test_which_hosts_are_known():
    with bind("127.0.0.1", 0) as here, bind("0.0.0.0", 0) as anywhere:
        own = {"localhost", "127.0.0.1", "[::1]"}
        assert known_hosts(here, "127.0.0.1") == own
        assert known_hosts(here, "127.0.0.1", ["chat.example"]) == own | {"chat.example"}
        assert known_hosts(anywhere, "0.0.0.0") == {"*"}
        assert known_hosts(anywhere, "0.0.0.0", ["chat.example"]) == own | {"0.0.0.0", "chat.example"}
    hosts = ("a.example", "*.b.example")
    for host in ("a.example", "A.Example.", "x.b.example", "y.x.b.example"):
        assert is_among(host, hosts)
    for host in ("x.a.example", "b.example", "xb.example", "a.example.org", ""):
        assert not is_among(host, hosts)
    assert is_among("any.example", ["*"])


@pytest.mark.slow
def test_a_page_may_be_asked_for_by_its_public_link(monkeypatch):
    monkeypatch.setattr(networking, "setup_tunnel", lambda **_: "https://abc.gradio.live")
    with gr.Blocks() as page:
        pass
    port = free_port()
    server.launch(page, bind("127.0.0.1", port), "127.0.0.1", share=True, allowed_hosts=["chat.example"])
    try:
        statuses = [
            status_for(f"http://127.0.0.1:{port}", f"{name}")
            for name in ("abc.gradio.live", "chat.example", "evil.example")
        ]
    finally:
        page.close()
    assert statuses == [200, 200, 421]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["queue/join", "upload", "run/ask"])
def test_a_large_body_of_the_page_is_refused(page_url, path, chunked):
    body = b'{"data": ["' + b"a" * 2_100_000 + b'"]}'  # with 1 MB for each file
    kind = "multipart/form-data; boundary=x" if path == "upload" else JSON["Content-Type"]
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + body
        if path == "upload"
        else body
    )
    content = (body[i : i + 10_000] for i in range(0, len(body), 10_000)) if chunked else body
    answer = httpx.post(f"{page_url}/gradio_api/{path}", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 413


MANY = MAX_VALUES + 1
LONG = 1_000_001


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[" + "1," * MANY + "1]", "20000 keys and values"),
        ('{"messages": [' + "[]," * MANY + "[]]}", "20000 keys and values"),
        ("[" * MANY, "20000 keys and values"),
        ("{" + ",".join(f'"{i}":1' for i in range(MANY)) + "}", "20000 keys and values"),
        ('["' + '","' * MANY + '"]', "20000 keys and values"),
        ('["\\\\","\\"",' + "1," * MANY + "1]", "20000 keys and values"),  # with quotes that end a string and do not
        ('"' * 99_999, "20000 keys and values"),
        ('{"seed": ' + "9" * LONG + "}", "1000000 bytes of numbers and spaces"),
        (" " * LONG, "1000000 bytes of numbers and spaces"),
        ('["' + "<ImageHere>" * LONG + '"]', "1000000 bytes of text"),
        ('["' + "a" * LONG + '\U0001f600"]', "1000000 bytes of text"),
        ('["' + "a" * LONG + '\\ud83d\\ude00"]', "1000000 bytes of text"),
        ('["' + "\\u00e9" * LONG + '"]', "1000000 bytes of text"),
        ('["' + '\\"' * LONG + '"]', "1000000 bytes of text"),
    ],
    ids=[
        "numbers",
        "lists",
        "nested",
        "keys",
        "strings",
        "escapes",
        "quotes",
        "number",
        "spaces",
        "text",
        "emoji",
        "pair",
        "latin",
        "escaped",
    ],
)
def test_a_body_of_too_many_values_is_not_parsed(server, body, words):
    path = "/v1/chat/completions" if httpx.get(f"{server}/v1/models").status_code == 200 else "/gradio_api/queue/join"
    if len(body) > 1_900_000:  # more than either takes at all
        with pytest.raises(ApiError, match=f"The body has more than {words}. Send fewer"):
            require_few_values(body.encode())
        return
    answer = httpx.post(f"{server}{path}", content=body.encode(), headers=JSON)
    assert answer.status_code == 413
    assert f"The body has more than {words}. Send fewer" in answer.json()["error"]["message"]


def test_other_encodings_are_refused(api_url):
    body = json.dumps({"model": NAME, "messages": [user("hello")]})
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        answer = httpx.post(f"{api_url}/v1/chat/completions", content=body.encode(encoding), headers=JSON)
        assert answer.status_code == 400 and "Send JSON in UTF-8" in answer.text


@pytest.mark.parametrize("name", ["seed", "messages", "key", "role"])
def test_no_error_repeats_megabytes(api_url, name):
    long = "k" * 1_900_000
    body = {
        "seed": {"model": NAME, "messages": [user("hello")], "seed": long},
        "messages": {"model": long, "messages": [user("hello")]},
        "key": {"model": NAME, "messages": [user("hello")], long: 1},
        "role": {"model": NAME, "messages": [{"role": long, "content": "hello"}]},
    }[name]
    answer = httpx.post(f"{api_url}/v1/chat/completions", json=body)
    assert answer.status_code in (400, 404) and len(answer.content) < 2000


@pytest.mark.slow
def test_large_pictures_and_long_conversations_are_no_such_bodies():
    picture = base64.b64encode(bytes(range(256)) * 60_000).decode()  # 20 MB
    escaped = picture.replace("+", "\\u002B").replace("/", "\\/")  # as .NET and PHP write it
    assert require_few_values(b'{"url": "data:image/png;base64,' + escaped.encode() + b'"}') is None
    turns = [
        user(SCENES[0], 'How many, and where, is the one that is "left"? é' * 4),
        {"role": "assistant", "content": "x"},
    ]
    assert require_few_values(json.dumps({"messages": turns * 500}, indent=2).encode()) is None
    with pytest.raises(ApiError, match="The body has more than .* keys and values"):
        require_few_values(json.dumps({"messages": turns * 5000}, indent=2).encode())


@pytest.mark.parametrize(
    "messages", [[1] * 9000, [{"role": "user", "content": [1] * 9000}], [{"role": "system", "content": [1] * 9000}]]
)
def test_what_is_wrong_in_a_list_is_reported_once(messages):
    """Thousands of errors take a second and many megabytes to write down."""
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate({"model": NAME, "messages": messages})
    assert error.value.error_count() <= 2  # one for each type that would do
