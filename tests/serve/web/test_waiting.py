"""A visitor whose question waits for its turn, and one who does two things at once."""

import json
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from minigpt4.inference.pictures import Picture
from minigpt4.serve.web.visitor import AnswerQueue
from tests.serve.visiting import OPTIONS, ask, message, texts
from tests.waiting import LIMIT, wait_for


@pytest.fixture
def visitor(url):
    return lambda: Client(url, verbose=False)


def started(client: Client, text: str, outputs: int = 3, files: Sequence[Path] = ()):
    """A question of which so much has been shown; with 3 its answer has started."""
    job = client.submit(message(text, files), *OPTIONS, api_name="/ask")
    wait_for(lambda: len(job.outputs()) >= outputs)
    return job


def test_first_come_first_served():
    queue = AnswerQueue(2)
    with ExitStack() as early, queue.join() as third_before:
        assert third_before() == 0
        with queue.join(), queue.join() as late:
            assert late() == 1
        first, second = (early.enter_context(queue.join()) for _ in range(2))
        assert [third_before(), first(), second()] == [0, 0, 1]
    with queue.join() as alone:
        assert alone() == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stop", "restart"])
def test_a_question_that_waits_can_be_given_up(visitor, echo, way):
    echo.go.clear()
    first, second, third = (visitor() for _ in range(3))
    answered = [started(client, "word " * 40) for client in (first, second)]
    waits = started(third, "never asked", 1)
    assert waits.outputs()[-1][-1] == "Waiting for 1 other answer …"
    third.predict(api_name=f"/{way}")
    assert texts(waits.result(timeout=LIMIT)) == []
    assert not any(job.done() for job in answered)  # nor are they harmed
    echo.go.set()
    assert len(texts(answered[0].result())) == len(texts(answered[1].result())) == 2
    assert echo.ended == ["stop", "stop"]
    assert ask(third, "one") == ["one", "one no picture"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stop", "restart"])
def test_the_first_question_can_be_given_up_while_its_pictures_are_read(visitor, echo, picture, monkeypatch, way):
    read, go, client = Picture.from_file, threading.Event(), visitor()
    monkeypatch.setattr(Picture, "from_file", lambda *args: go.wait(LIMIT) and read(*args))
    asked = started(client, "never asked", 1, [picture("red")])
    assert asked.outputs()[0][-1] == "Reading …" and asked.outputs()[0][1]["value"]["text"] == ""
    with pytest.raises(AppError, match="nothing to save yet"):
        client.predict(api_name="/save")
    if way == "stop":
        with pytest.raises(AppError, match="still being answered"):  # it is the same visitor's
            ask(client, "another")
    client.predict(api_name=f"/{way}")
    go.set()
    assert texts(given_up := asked.result(timeout=LIMIT)) == []
    assert given_up[1].get("value", {}).get("text") == ("never asked" if way == "stop" else None)  # back in the box
    assert not echo.ended
    assert ask(client, "one") == ["one", "one no picture"]


@pytest.mark.slow
def test_there_is_nothing_to_save_before_the_first_answer(visitor, echo):
    echo.go.clear()
    client = visitor()
    asked = started(client, "word " * 20)
    with pytest.raises(AppError, match="nothing to save yet"):
        client.predict(api_name="/save")
    echo.go.set()
    asked.result()
    assert client.predict(api_name="/save")


@pytest.mark.slow
def test_a_question_that_waits_is_answered_when_its_turn_comes(visitor, echo):
    echo.go.clear()
    jobs = [started(visitor(), "word " * 20), started(visitor(), "word " * 20), started(visitor(), "one", 1)]
    echo.go.set()
    assert texts(jobs[2].result()) == ["one", "one no picture"]


@pytest.mark.slow
def test_a_second_question_at_once_is_refused_and_the_page_stays_as_it_is(visitor, echo):
    echo.go.clear()
    client = visitor()
    first = started(client, "word " * 20)
    second = client.submit(message("two"), *OPTIONS, api_name="/ask")
    with pytest.raises(AppError, match="still being answered. Wait for its answer, or stop it"):
        second.result()
    assert not second.outputs() and not first.done()
    echo.go.set()
    assert len(texts(first.result())[1].split()) == 22


@pytest.mark.slow
def test_only_a_conversation_that_loads_ends_the_answer_under_way(visitor, echo, tmp_path):
    echo.go.clear()
    client = visitor()
    asked = started(client, "word " * 60)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "good.json").write_text(json.dumps({"version": 1, "turns": [{"question": "one", "answer": "1"}]}))
    with pytest.raises(AppError, match="not JSON"):
        client.predict(handle_file(tmp_path / "bad.json"), api_name="/load")
    assert not echo.ended
    loaded = client.predict(handle_file(tmp_path / "good.json"), api_name="/load")
    assert texts(loaded) == texts(asked.result(timeout=LIMIT)) == ["one", "1"]
    assert echo.ended == ["interrupt"]
    echo.go.set()
    assert ask(client, "two") == ["one", "1", "two", "two no picture"]
