"""Conversations that the page saves and loads."""

import json
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from minigpt4.inference.chat import Chat
from tests.serve.visiting import ask, number_of, pictures, texts


@pytest.fixture
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.mark.slow
def test_save_and_load(client, url, picture, echo, page_engine, tmp_path):
    with pytest.raises(AppError, match="nothing to save"):
        client.predict(api_name="/save")
    ask(client, "one", picture("red"))
    saved = client.predict(api_name="/save")
    assert Path(saved).name == "conversation.json"
    assert json.loads(Path(saved).read_text())["turns"][0]["question"][-1] == " one"
    other = Client(url, verbose=False)
    ask(other, "something else")
    shown = other.predict(handle_file(saved), api_name="/load")
    red = number_of(page_engine, "red")
    assert texts(shown) == ["one", f"one {red}"] and pictures(shown) == 1
    assert ask(other, "two")[2:] == ["two", f"two {red}"]

    for content, complaint in ((b"\xff\xfe", "not a saved conversation"), (b"{}", 'holds no "turns"')):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(AppError, match=complaint):
            other.predict(handle_file(tmp_path / "bad.json"), api_name="/load")
    assert len(ask(other, "three")) == 6


@pytest.mark.slow
def test_what_is_saved_can_be_loaded(client, url, echo, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8))  # a PNG of 1.1 MB
    image.save(tmp_path / "photo.jpg", quality=90)
    ask(client, "one", tmp_path / "photo.jpg")
    (file,) = client.predict(api_name="/undo")[1]["value"]["files"]
    assert Path(file).read_bytes() == (tmp_path / "photo.jpg").read_bytes()
    before = ask(client, "two", Path(file))
    saved = client.predict(api_name="/save")
    other = Client(url, verbose=False)
    assert texts(other.predict(handle_file(saved), api_name="/load")) == before
    assert ask(other, "two") == before * 2  # the very same picture

    image.crop((0, 0, 500, 500)).save(tmp_path / "drawing.png")
    ask(client, "three", tmp_path / "drawing.png")
    with pytest.raises(AppError, match="would have 1.4 MB; no more than 1 can be loaded again. Take back questions"):
        client.predict(api_name="/save")
    client.predict(api_name="/undo")
    assert Path(client.predict(api_name="/save")).read_bytes() == Path(saved).read_bytes()


@pytest.mark.slow
def test_a_saved_conversation_may_hold_no_larger_pictures_either(client, tmp_path, page_engine):
    chat = Chat(page_engine)
    chat.upload_img(Image.new("RGB", (2001, 2000)))
    (tmp_path / "large.json").write_text(chat.save())
    with pytest.raises(AppError, match="more than 4 megapixels"):
        client.predict(handle_file(tmp_path / "large.json"), api_name="/load")
