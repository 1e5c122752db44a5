"""Malicious clients of the page."""

import gc
import json
import threading
import weakref
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import gradio.processing_utils
import gradio.routes
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from starlette.responses import Response

from minigpt4.inference.chat import Chat
from minigpt4.inference.sessions import Sessions
from minigpt4.serve.address import bind
from minigpt4.serve.web import page as pages
from minigpt4.serve.web import server
from minigpt4.serve.web.handlers import Handlers
from tests.picture_files import write_video
from tests.serve.conftest import free_port
from tests.serve.visiting import OPTIONS, ask
from tests.waiting import wait_for


@pytest.fixture
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.mark.slow
def test_all_pictures_of_a_conversation_together_have_a_limit(client, picture, echo, page_engine):
    large = [picture(color, (2000, 2000)) for color in ("red", "green", "blue")]
    small = picture("white", (1, 1))
    ask(client, "one", *large)
    for files in (large[:2], [large[0], small]):
        with pytest.raises(
            AppError, match=f"{files[1].name}: with it, .* more than 16 megapixels together. Show fewer"
        ):
            ask(client, "two", *files)
    assert ask(client, "two", large[0])[3].startswith("two 4 ")


@pytest.mark.slow
def test_a_video_of_large_frames_is_refused(client, tmp_path, echo):
    video = write_video(tmp_path / "large.mp4", [(0, 0, 0)] * 3, 2400, 2000)
    with pytest.raises(AppError, match="^large.mp4: the picture has more than 4 megapixels. Make it smaller."):
        ask(client, "one", video)
    assert ask(client, "two") == ["two", "two no picture"]


@pytest.mark.slow
def test_a_message_is_no_html(client, echo, page_engine, tmp_path, monkeypatch):
    picture = "<img src=//evil.invalid/a>"
    (tmp_path / "bad.json").write_text(json.dumps({"version": 1, "turns": [], "pictures": [picture]}))
    with pytest.raises(AppError, match="&lt;img src=//evil.invalid/a&gt;"):
        client.predict(handle_file(tmp_path / "bad.json"), api_name="/load")

    def fail(_):
        raise RuntimeError(picture)

    monkeypatch.setattr(page_engine, "answer", fail)
    with pytest.raises(AppError, match="RuntimeError: &lt;img src=//evil.invalid/a&gt;"):
        ask(client, "one")


def test_half_a_character_is_no_question(url):
    asked = json.dumps({"data": [{"text": "\ud800", "files": []}, *OPTIONS]})
    json_type = {"content-type": "application/json"}
    event = httpx.post(f"{url}/gradio_api/call/ask", content=asked, headers=json_type).json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/ask/{event}").text
    assert "event: error" in answer and "only half there" in answer


@pytest.mark.slow
def test_a_failure_to_save_is_reported_in_words(client, echo, monkeypatch):
    def fail(_: Chat) -> str:
        raise OSError("disk full")

    ask(client, "one")
    monkeypatch.setattr(Chat, "save", fail)
    with pytest.raises(AppError, match="The model failed: OSError: disk full"):
        client.predict(api_name="/save")


@contextmanager
def another_host(folder, monkeypatch):
    """A server of the files of a folder, which gradio takes for a public one. Gives its address, and what was asked."""
    asked = []

    class Host(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *_):
            asked.append(self.path)

    async def get(url: str) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(url)

    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_get", get)
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


@pytest.mark.slow
def test_nothing_is_fetched_from_an_address(url, client, echo, picture, tmp_path, monkeypatch):
    picture("red")
    (tmp_path / "saved.json").write_text('{"version": 1, "turns": []}')
    with another_host(tmp_path, monkeypatch) as (host, asked):
        red, saved = handle_file(f"{host}/red.png"), handle_file(f"{host}/saved.json")
        words = {"text": "one", "files": []}
        for event, *inputs in (
            ("ask", {"text": "one", "files": [red]}, *OPTIONS),
            ("ask", {"path": "x", "text": "one", "files": [red]}, *OPTIONS),
            ("ask", words, red, *OPTIONS[1:]),
            ("load", saved),
        ):
            with pytest.raises(AppError, match="named by its address. Download it, then upload it"):
                client.predict(*inputs, api_name=f"/{event}")
        events = httpx.get(f"{url}/config").json()["dependencies"]
        camera = next(event["id"] for event in events if event["targets"][0][1] == "input")
        photo = {"fn_index": camera, "data": [red, words], "session_hash": "camera"}
        httpx.post(f"{url}/gradio_api/queue/join", json=photo).raise_for_status()
        assert "named by its address" in httpx.get(f"{url}/gradio_api/queue/data?session_hash=camera").text
    assert not asked


@pytest.mark.slow
def test_the_page_is_no_relay(url, monkeypatch):
    fetched = []

    async def fetch(address: str, _) -> Response:
        fetched.append(address)
        return Response("a page of somebody else's")

    monkeypatch.setattr(gradio.routes, "secure_url_stream_response", fetch)
    for route in ("file=https://", "file=http://", "file%3Dhttps://", "file/https://", "file/http%3A//"):
        path = f"{route}example.com/a.png"
        assert httpx.get(f"{url}/gradio_api/{path}").status_code == 404
    assert not fetched


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "max_sessions", "left"), [(999, 1, 4), (1, 99, 0)])
def test_conversations_of_the_page_do_not_pile_up(page_engine, echo, monkeypatch, seconds, max_sessions, left):
    opened, sessions = [], Sessions(page_engine)
    monkeypatch.setattr(sessions, "open", lambda: opened.append(weakref.ref(chat := Chat(page_engine))) or chat)
    monkeypatch.setattr(pages, "KEPT", seconds)
    page, port = pages.build_page(Handlers(sessions), []), free_port()
    server.launch(page, bind("127.0.0.1", port), "127.0.0.1", max_sessions=max_sessions)
    try:
        visitors = [Client(f"http://127.0.0.1:{port}", verbose=False) for _ in range(6)]
        for visitor in visitors:
            ask(visitor, "one")
        wait_for(lambda: gc.collect() is not None and sum(chat() is not None for chat in opened) <= left)
        assert (len(opened), sum(chat() is not None for chat in opened)) == (6, left)
        assert ask(visitors[0], "two") == ["two", "two no picture"]  # the conversation is a new one
    finally:
        page.close()
