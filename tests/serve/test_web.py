"""The demo over HTTP: what a visitor's browser does, done by gradio_client."""

import socket
import threading
import time

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from minigpt4.common.config import Config, ProcessorConfig
from minigpt4.common.errors import UserError
from minigpt4.conversation.chat import Chat
from minigpt4.processors import build_processor
from minigpt4.serve import web

PROCESSOR = build_processor(ProcessorConfig(name="blip2_image_eval", image_size=56))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def url(parity_model):
    page, port = web.build_page(parity_model, PROCESSOR, []), free_port()
    web.launch(page, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.fixture
def picture(tmp_path):
    """Makes a picture file of one colour."""

    def make(color: str) -> dict:
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{color}.png")
        return handle_file(tmp_path / f"{color}.png")

    return make


@pytest.fixture
def echo(parity_model, monkeypatch):
    """The model repeats its last question and names its picture by a number, word by word."""

    def generate(images, texts, *, streamer=None, **options):
        question = texts[0].rpartition("Human: ")[2].partition("###")[0].rpartition("> ")[2]
        words = f"{question} {len(images)} {images.double().sum():.3f}".split()
        for n in range(len(words) if streamer else 0):
            streamer.say(" ".join(words[: n + 1]))
            time.sleep(0.05)
        return [" ".join(words)]

    monkeypatch.setattr(parity_model, "generate", generate)


def ask(client: Client, question: str, beams: int = 1, temperature: float = 0, max_new_tokens: int = 8) -> list[str]:
    history, _ = client.predict(question, beams, temperature, max_new_tokens, api_name="/ask")
    return texts(history)


def texts(history: list[dict]) -> list[str]:
    """The messages, which gradio wraps in parts."""
    return ["".join(part["text"] for part in message["content"]) for message in history]


def number_of(model, color: str) -> str:
    chat = Chat(model, PROCESSOR)
    chat.upload_img(Image.new("RGB", (40, 30), color))
    return f"{chat.images[0].double().sum():.3f}"


def test_several_turns_about_one_picture(client, picture, echo, parity_model):
    assert client.predict(picture("red"), api_name="/upload") == []
    red = number_of(parity_model, "red")
    assert ask(client, "one") == ["one", f"one 1 {red}"]
    assert ask(client, "two") == ["one", f"one 1 {red}", "two", f"two 1 {red}"]


def test_answer_is_streamed(client, picture, echo):
    client.predict(picture("red"), api_name="/upload")
    job = client.submit("a question of several words", 1, 0, 8, api_name="/ask")
    assert texts(job.result()[0])[1].startswith("a question of several words 1")
    answers = [texts(history)[1] for history, _ in job.outputs()]
    assert answers[0] == "…"
    assert len(set(answers)) > 3


def test_two_visitors_at_once_never_mix(url, picture, echo, parity_model, monkeypatch):
    both, generate = threading.Barrier(2), parity_model.generate

    def together(*args, **options):
        both.wait(5)  # fails unless the two generations run at the same time
        return generate(*args, **options)

    monkeypatch.setattr(parity_model, "generate", together)
    visitors = {color: Client(url, verbose=False) for color in ("red", "blue")}
    for color, client in visitors.items():
        client.predict(picture(color), api_name="/upload")
    for turn in (1, 2):
        jobs = {c: client.submit(f"{c} {turn}", 1, 0, 8, api_name="/ask") for c, client in visitors.items()}
        for color, job in jobs.items():
            number = number_of(parity_model, color)
            expected = [text for t in range(1, turn + 1) for text in (f"{color} {t}", f"{color} {t} 1 {number}")]
            assert texts(job.result()[0]) == expected


def test_new_picture_starts_a_new_conversation(client, picture, echo, parity_model):
    client.predict(picture("red"), api_name="/upload")
    ask(client, "one")
    client.predict(picture("blue"), api_name="/upload")
    assert ask(client, "two") == ["two", f"two 1 {number_of(parity_model, 'blue')}"]


def test_restart_forgets_words_and_picture(client, picture, echo):
    client.predict(picture("red"), api_name="/upload")
    ask(client, "one")
    assert client.predict(api_name="/restart") == ([], None)
    with pytest.raises(AppError, match="Show a picture first"):
        ask(client, "two")


def test_restart_mid_answer(client, picture, echo):
    client.predict(picture("red"), api_name="/upload")
    job = client.submit("a " * 30, 1, 0, 8, api_name="/ask")
    while not job.outputs():
        time.sleep(0.02)
    client.predict(api_name="/restart")
    assert job.result()[0] == []


@pytest.mark.parametrize(("beams", "temperature"), [(1, 0), (3, 0), (1, 1.5), (2, 0.7)])
def test_beams_and_temperature_with_the_real_model(client, picture, beams, temperature):
    client.predict(picture("red"), api_name="/upload")
    assert len(ask(client, "What is this?", beams, temperature)) == 2


def test_options_reach_the_model(client, picture, parity_model, monkeypatch):
    seen = []

    def generate(images, texts, *, streamer=None, interrupt=None, kept=None, **options):
        seen.append(options)
        return ["ok"]

    monkeypatch.setattr(parity_model, "generate", generate)
    client.predict(picture("red"), api_name="/upload")
    ask(client, "?", 1, 0, 5)
    ask(client, "?", 4, 0.5, 6)
    assert seen[0] == {"num_beams": 1, "max_new_tokens": 5}
    assert seen[1] == {"num_beams": 4, "max_new_tokens": 6, "do_sample": True, "temperature": 0.5}


def test_no_picture_no_question_no_image_in_words(client, picture, tmp_path):
    with pytest.raises(AppError, match="Show a picture first"):
        ask(client, "What is this?")
    client.predict(picture("red"), api_name="/upload")
    with pytest.raises(AppError, match="The question is empty"):
        ask(client, "  ")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(AppError, match="cannot be read as a picture"):
        client.predict(handle_file(tmp_path / "broken.png"), api_name="/upload")
    with pytest.raises(AppError, match="Show a picture first"):  # the old picture is not what the chat is about
        ask(client, "What is this?")


@pytest.mark.parametrize("beams", [1, 2])
def test_failure_of_the_model_in_words_and_the_session_goes_on(client, picture, echo, parity_model, monkeypatch, beams):
    client.predict(picture("red"), api_name="/upload")
    before = ask(client, "one")

    def fail(images, texts, *, streamer=None, **options):
        if streamer:
            streamer.say("half an ")
        raise RuntimeError("out of memory\nlong details")

    with monkeypatch.context() as broken:
        broken.setattr(parity_model, "generate", fail)
        with pytest.raises(AppError, match="The model failed: RuntimeError: out of memory"):
            ask(client, "two", beams)
    assert ask(client, "three")[:3] == [*before, "three"]


def test_files_of_the_server_cannot_be_named(url, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "private.png")
    data = {"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(f"{url}/gradio_api/call/upload", json={"data": [data]}).json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/upload/{event}").text
    assert "event: error" in answer and "not uploaded by a user" in answer


def test_pictures_are_read_the_right_way_up(tmp_path):
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert web._open(tmp_path / "turned.jpg").size == (30, 40)


def test_address_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="--port .* in use"):
        web.serve(Config(), port=taken.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("no.such.host.invalid", 7860)])
def test_address_that_cannot_be_is_one_line(host, port):
    with pytest.raises(UserError, match="Choose another"):
        web.serve(Config(), host=host, port=port)


def test_text_is_shown_as_text(client, picture, echo):
    client.predict(picture("red"), api_name="/upload")
    question, answer = ask(client, "<img src=http://x> 3 < 5 & <ImageHere>")
    assert question == "&lt;img src=http://x> 3 < 5 & &lt;ImageHere>"
    assert answer.startswith("3 < 5 &")
