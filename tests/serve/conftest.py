"""Fixtures of the doors: the bundled model, a page of a model that says what a test sets, and an API."""

import socket
import threading
import time
from collections.abc import Iterator
from copy import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from openai import OpenAI
from PIL import Image

from minigpt4.config.finding import TINY
from minigpt4.config.loading import load_config
from minigpt4.inference.engine import Engine
from minigpt4.inference.loading import load_engine
from minigpt4.inference.pictures import Picture
from minigpt4.inference.requests import Answer
from minigpt4.inference.sessions import Sessions
from minigpt4.serve.address import bind
from minigpt4.serve.api.service import Limits, Service
from minigpt4.serve.web import server as web_server
from minigpt4.serve.web.handlers import Handlers
from minigpt4.serve.web.page import build_page
from tests.picture_files import write_video
from tests.serve.asking import NAME, client_of, running
from tests.serve.predicting import COUNT, DESCRIBE, SCENES, write

MAX_PIXELS = 4_000_000
MAX_MB = 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="session")
def example(tmp_path_factory) -> Path:
    """A picture on the page that a click adds to the message."""
    file = tmp_path_factory.mktemp("examples") / "green.png"
    Image.new("RGB", (40, 30), "green").save(file)
    return file


@pytest.fixture(scope="session")
def page_engine(_parity_engine) -> Engine:
    """Of the page at `url`."""
    return copy(_parity_engine)


@pytest.fixture(scope="session")
def url(page_engine, example):
    handlers = Handlers(Sessions(page_engine, max_sessions=2, max_pixels=MAX_PIXELS), MAX_MB)
    page, port = build_page(handlers, [example]), free_port()
    web_server.launch(page, bind("127.0.0.1", port), "127.0.0.1", max_upload_mb=MAX_MB)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture
def echo(page_engine, monkeypatch):
    """The model repeats its last question and names its pictures by a number, word by word, `seconds` each.

    After `said` is set, it says that instead. While `go` is not set, it stops after five words, until it is or somebody
    interrupts it. `ended` holds how each answer ended, `options` what it was given.
    """
    model = SimpleNamespace(seconds=0.02, said=None, ended=[], options=[], go=threading.Event())
    model.go.set()

    def answer(requests):
        (request,) = requests
        model.options.append({"max_new_tokens": request.max_new_tokens, "seed": request.seed, **vars(request.decoding)})
        text = page_engine.prompter.text(page_engine.prompter.read(request.prompt))
        question = text.rpartition("Human: ")[2].partition("###")[0].rpartition("</Img>")[2].strip()
        images = page_engine.embeddings(request.prompt.pictures)
        seen = f"{len(images)} {torch.stack(images).double().sum():.3f}" if images else "no picture"
        words = (model.said or f"{question} {seen}").split(" ")
        said = 0
        while said < len(words) and not request.interrupt.is_set():
            said += 1
            if request.on_text:
                request.on_text(" ".join(words[:said]))
            while said == 5 and not (model.go.is_set() or request.interrupt.wait(0.01)):
                pass
            time.sleep(model.seconds)
        whole = Answer(" ".join(words[:said]))
        whole.new_tokens, whole.prompt_tokens = said, 10
        whole.finish = "interrupt" if request.interrupt.is_set() else "stop"
        model.ended.append(whole.finish)
        return [whole]

    monkeypatch.setattr(page_engine, "answer", answer)
    yield model
    model.go.set()  # a test that failed leaves no answer behind that others would wait for


@pytest.fixture
def picture(tmp_path):
    """Makes a picture file of one colour."""

    def make(color: str, size: tuple[int, int] = (40, 30)) -> Path:
        Image.new("RGB", size, color).save(tmp_path / f"{color}.png")
        return tmp_path / f"{color}.png"

    return make


@pytest.fixture
def bad_files(tmp_path, picture) -> dict[Path, str]:
    """Files that cannot be asked about, and what the page says of each."""
    good = picture("yellow", (300, 300)).read_bytes()
    for name, data in {
        "text.jpg": b"Dear Sir,\n" * 99,
        "half.png": good[: len(good) // 2],
        "text.mp4": b"none",
    }.items():
        (tmp_path / name).write_bytes(data)
    large = picture("purple", (2001, 2000))
    return {
        tmp_path / "text.jpg": "text.jpg: can't be read as a picture",
        tmp_path / "half.png": "half.png: can't be read as a picture",
        tmp_path / "text.mp4": "text.mp4: can't be read as a video",
        large: "purple.png: the picture has more than 4 megapixels",
    }


@pytest.fixture(scope="session")
def tiny() -> Engine:
    """Of the bundled model."""
    return load_engine(load_config(TINY))


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """A file of 20 frames."""
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    return write_video(file, [(shade,) * 3 for shade in range(0, 200, 10)], 64, 64)


@pytest.fixture(scope="module")
def service(tiny) -> Service:
    return Service(tiny, NAME, Limits(max_image_pixels=1_000_000, max_body_mb=2))


@pytest.fixture(scope="module")
def api_url(service) -> Iterator[str]:
    with running(service) as address:
        yield address


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    """A page with nothing on it."""
    with gr.Blocks() as page:
        pass
    port = free_port()
    web_server.launch(page, bind("127.0.0.1", port), "127.0.0.1", max_upload_mb=MAX_MB)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(params=["api_url", "page_url"])
def server(request) -> str:
    """The address of each door."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(api_url) -> OpenAI:
    return client_of(api_url)


@pytest.fixture
def predict(minigpt4, monkeypatch, tiny):
    """Runs `minigpt4 predict` with a model that is loaded already."""
    monkeypatch.setattr("minigpt4.inference.loading.load_engine", lambda *_: tiny)
    return partial(minigpt4, "predict")


@pytest.fixture
def mixed(tmp_path, video) -> Path:
    """Records of all kinds, six good and six bad ones."""
    (tmp_path / "scene.jpg").write_bytes(SCENES[1].read_bytes())
    (tmp_path / "cut.jpg").write_bytes(SCENES[1].read_bytes()[:1500])
    return write(
        tmp_path / "questions.jsonl",
        [
            {"id": "one", "image": "scene.jpg", "text": DESCRIBE},
            {"id": "url", "image": Picture.from_file(SCENES[0]).to_url(), "text": COUNT},
            {"id": "gone", "image": "gone.jpg", "text": COUNT},
            {"id": 7, "images": [str(SCENES[2]), "scene.jpg"], "text": COUNT, "answer": "not read"},
            {"id": "cut", "image": "cut.jpg", "text": COUNT},
            {"id": "clip", "video": str(video), "text": COUNT},
            {"image": str(SCENES[3])},
            "no object",
            {"id": "list", "image": [3], "text": COUNT},
            {"id": "number", "image": "scene.jpg", "text": 3},
            {"id": "long", "image": "scene.jpg", "text": "digit " * 3000},
            {"id": "words", "text": "Is there a <ImageHere> yellow digit? é"},
        ],
    )
