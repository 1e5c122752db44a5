"""Visitors of the page who mean it no good."""

import json

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from minigpt4.conversation.chat import Chat
from tests.picture_files import write_video
from tests.serve.visiting import OPTIONS, ask


@pytest.fixture
def client(url) -> Client:
    return Client(url, verbose=False)


def test_all_pictures_of_a_conversation_together_have_a_limit(client, picture, echo, parity_model):
    large = [picture(color, (2000, 2000)) for color in ("red", "green", "blue")]
    small = picture("white", (1, 1))
    ask(client, "one", *large)
    for files in (large[:2], [large[0], small]):
        with pytest.raises(
            AppError, match=f"{files[1].name}: with it, .* more than 16 megapixels together. Show fewer"
        ):
            ask(client, "two", *files)
    assert ask(client, "two", large[0])[3].startswith("two 4 ")


def test_a_video_of_large_frames_is_refused(client, tmp_path, echo):
    video = write_video(tmp_path / "large.mp4", [(0, 0, 0)] * 3, 2400, 2000)
    with pytest.raises(AppError, match="^large.mp4: the picture has more than 4 megapixels. Make it smaller."):
        ask(client, "one", video)
    assert ask(client, "two") == ["two", "two no picture"]


def test_a_message_is_no_html(client, echo, parity_model, tmp_path, monkeypatch):
    picture = "<img src=//evil.invalid/a>"
    (tmp_path / "bad.json").write_text(json.dumps({"version": 1, "turns": [], "pictures": [picture]}))
    with pytest.raises(AppError, match="&lt;img src=//evil.invalid/a&gt;"):
        client.predict(handle_file(tmp_path / "bad.json"), api_name="/load")

    def fail(*_, **options):
        raise RuntimeError(picture)

    monkeypatch.setattr(parity_model, "generate", fail)
    with pytest.raises(AppError, match="RuntimeError: &lt;img src=//evil.invalid/a&gt;"):
        ask(client, "one")


def test_half_a_character_is_no_question(url):
    asked = json.dumps({"data": [{"text": "\ud800", "files": []}, *OPTIONS]})
    json_type = {"content-type": "application/json"}
    event = httpx.post(f"{url}/gradio_api/call/ask", content=asked, headers=json_type).json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/ask/{event}").text
    assert "event: error" in answer and "only half there" in answer


def test_a_failure_to_save_is_told_in_words(client, echo, monkeypatch):
    def fail(_: Chat) -> str:
        raise OSError("disk full")

    ask(client, "one")
    monkeypatch.setattr(Chat, "save", fail)
    with pytest.raises(AppError, match="The model failed: OSError: disk full"):
        client.predict(api_name="/save")
