"""Files of strangers are decoded in another process, which can be ended."""

import io
import json
import os
import socket
import threading
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from gradio_client import Client
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.inference.pictures import Picture, Video
from minigpt4.processors.picture_file import PixelBudget, open_image, open_upright
from minigpt4.processors.video import open_video
from minigpt4.serve import picture_decoding
from minigpt4.serve.api import service
from minigpt4.serve.picture_decoding import Decoder
from minigpt4.serve.web import handlers
from tests.picture_files import file_of
from tests.serve.asking import NAME, SCENES, user
from tests.serve.openers import endless, greedy, killed, process_id
from tests.serve.visiting import OPTIONS, ask, message
from tests.waiting import LIMIT, wait_for

NEVER = 10**6  # seconds


def works() -> set[int]:
    """The processes that decode, or are ready to."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "minigpt4.serve.picture_decoding" in child.cmdline():
                found.add(child.pid)
    return found


class _GoneError(Exception):
    pass


def test_pixels_are_those_of_this_process(tmp_path, video):
    file = file_of(Image.effect_noise((321, 200), 90).convert("RGB"), "jpeg")
    (image,) = Decoder()(open_upright, io.BytesIO(file.getvalue()), PixelBudget())
    assert image.tobytes() == open_image(file).tobytes()
    budget = PixelBudget(most=21)
    assert Picture.from_file(SCENES[0], budget, Decoder()).image.tobytes() == open_image(SCENES[0]).tobytes()
    frames = Video(video).pictures(budget, Decoder())
    assert [frame.image.tobytes() for frame in frames] == [frame.tobytes() for frame in open_video(video, 8)]
    with pytest.raises(UserError, match="clip.mp4: .* would have 29 pictures; the model reads 21 at most"):
        Video(video, 20).pictures(budget, Decoder())  # what was read in the other process took its room in this one


def test_what_is_refused_there_is_refused_here_and_the_process_continues():
    ((before,), (again,)) = Decoder()(process_id), Decoder()(process_id)
    assert before.size == again.size != (os.getpid(), 1)
    with pytest.raises(UserError, match=r"^this can't be read as a picture: it is not one of JPEG"):
        Picture.from_url("data:image/png;base64,AAAA", reader=Decoder())
    with pytest.raises(UserError, match=r"^the picture has more than 0.0001 megapixels. Make it smaller.$"):
        Decoder()(open_upright, file_of(Image.new("RGB", (11, 10))), PixelBudget(100))
    assert Decoder()(process_id)[0].size == before.size


@pytest.mark.slow
def test_all_files_of_a_question_have_a_deadline_together():
    decoder = Decoder(seconds=0.5)
    for _ in range(2):  # nothing is left of it for the second
        with pytest.raises(UserError, match=r"the files take more than 0.5 s to decode. Make them smaller, or save"):
            decoder(endless)
    assert Decoder()(process_id)


@pytest.mark.parametrize(("opener", "words"), [(killed, "process that .* has ended"), (greedy, "MemoryError")])
def test_a_process_that_takes_too_much_harms_no_other(opener, words):
    with pytest.raises(UserError, match=words):
        Decoder(max_pixels=1000)(opener)
    assert Decoder()(process_id)


@pytest.mark.slow
def test_who_leaves_ends_the_process():
    asked, left = threading.Event(), threading.Event()

    def check() -> None:
        asked.set()
        if left.is_set():
            raise _GoneError

    def leave() -> None:
        assert asked.wait(LIMIT)
        left.set()

    threading.Thread(target=leave).start()
    before = works()
    with pytest.raises(_GoneError):
        Decoder(check=check)(endless)
    assert works() <= before


@pytest.mark.slow
def test_a_client_that_leaves_ends_the_decoding_of_its_picture(api_url, monkeypatch):
    began, check = threading.Event(), service.check_client

    def note(gone: threading.Event) -> None:
        began.set()
        check(gone)

    monkeypatch.setattr(service, "open_upright", endless)
    monkeypatch.setattr(service, "Decoder", partial(Decoder, seconds=NEVER))
    monkeypatch.setattr(service, "check_client", note)
    body = {"model": NAME, "messages": [user(SCENES[0], "What is it?")], "max_tokens": 1}
    content, address = json.dumps(body), urlsplit(api_url)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length:"
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(f"{head} {len(content)}\r\n\r\n{content}".encode())
        assert began.wait(LIMIT)
        busy = works()
        assert busy
    wait_for(lambda: not busy <= works())
    monkeypatch.undo()
    answer = httpx.post(f"{api_url}/v1/chat/completions", json=body, timeout=LIMIT)
    assert answer.status_code == 200


@pytest.mark.slow
def test_stop_ends_the_decoding_of_a_visitors_picture(url, picture, echo, monkeypatch):
    client, began = Client(url, verbose=False), threading.Event()
    check = handlers.Visitor.check

    def note(self, stopped: threading.Event, seconds: float = 0) -> None:
        began.set()
        check(self, stopped, seconds)

    ask(client, "one")
    monkeypatch.setattr("minigpt4.inference.pictures.open_upright", endless)
    monkeypatch.setattr(handlers, "Decoder", partial(Decoder, seconds=NEVER))
    monkeypatch.setattr(handlers.Visitor, "check", note)
    job = client.submit(message("two", [picture("red")]), *OPTIONS, api_name="/ask")
    assert began.wait(LIMIT)
    client.predict(api_name="/stop")
    job.result(timeout=LIMIT)
    monkeypatch.undo()
    assert ask(client, "three", picture("red"))[2].startswith("three")


@pytest.mark.slow
def test_no_more_than_two_files_are_decoded_at_once():
    idle, seen = threading.Event(), []

    def check() -> None:
        seen.append(len(works() - before))
        if idle.is_set():
            raise _GoneError

    def run() -> None:
        with pytest.raises(_GoneError):
            Decoder(check=check)(endless)

    picture_decoding.idle.clear()
    before = works()
    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(seen) > 20)
    idle.set()
    for thread in threads:
        thread.join(LIMIT)
    assert max(seen) == 2
