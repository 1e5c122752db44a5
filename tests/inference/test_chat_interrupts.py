"""A session that is restarted, stopped, left, or asked by two at once."""

import threading

import pytest

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Turn
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.chat import Chat, RestartedError
from minigpt4.inference.pictures import Picture, Video
from minigpt4.inference.requests import Answer
from tests.inference.talking import IMAGE, picture, written
from tests.waiting import LIMIT


def test_restart_ends_the_answer_under_way(chat, script):
    chat.upload_img(picture("red"))
    script("one", " two", " three")
    old = chat.stream("Old?")
    assert next(old) == "one"
    chat.restart()
    new = chat.stream("New?")
    assert next(new) == "one"
    with pytest.raises(RestartedError):
        next(old)
    assert list(new)[-1] == "one two three"
    assert written(chat.turns) == ["New?"]


def test_a_restart_while_pictures_are_encoded_leaves_nothing_of_them(chat, parity_model, monkeypatch):
    encode, started, go, errors = parity_model.encode_img, threading.Event(), threading.Event(), []

    def slow(pixels):
        started.set()
        return go.wait(LIMIT) and encode(pixels)

    def old(act) -> threading.Thread:
        started.clear()
        go.clear()
        thread = threading.Thread(target=act)
        thread.start()
        started.wait(LIMIT)
        return thread

    def ask():
        errors.append(pytest.raises(RestartedError, chat.answer, [picture("red"), "Old?"]))

    with monkeypatch.context() as patch:
        patch.setattr(parity_model, "encode_img", slow)
        asking = old(ask)
        chat.restart()
        new = chat.stream("New?", max_new_tokens=30, min_new_tokens=30)
        next(new)
        go.set()
        asking.join(LIMIT)
        assert len(errors) == 1
        fresh = Chat(chat.engine).answer("New?", max_new_tokens=30, min_new_tokens=30)
        assert list(new)[-1] == fresh
        showing = old(lambda: chat.upload_img(picture("blue")))
        chat.restart()
        go.set()
        showing.join(LIMIT)
    assert chat.pictures == [] and chat.turns == []


def test_a_question_from_before_a_restart_is_not_asked_after_it(chat, script, monkeypatch):
    calls = script("fine")
    chat.answer("One?")
    for stream in (chat.stream("Old?"), chat.edit(0, "Old?"), chat.regenerate()):
        chat.restart()
        with pytest.raises(RestartedError):
            next(stream)
        chat.answer("New?")
    monkeypatch.setattr(Video, "pictures", lambda self, room: chat.restart() or [Picture(picture("red"))])
    with pytest.raises(RestartedError):
        chat.answer([Video("v.mp4"), "Old?"])
    assert chat.turns == [] and len(calls) == 4


def test_what_an_ended_conversation_forgot_is_not_the_new_ones(chat, script, monkeypatch):
    script("fine")
    prompts, layout = [], Prompter.layout

    def ask(restart_at: int) -> None:
        def counted(self, parts) -> list[int]:
            prompts.append(parts)
            if len(prompts) == restart_at:
                chat.restart()
            return layout(self, parts)

        chat.turns = [Turn(["word " * 10], "fine") for _ in range(300)]
        monkeypatch.setattr(Prompter, "layout", counted)
        chat.answer("Four?", max_new_tokens=10)

    ask(restart_at=0)
    last = len(prompts)
    chat.restart()
    prompts.clear()
    with pytest.raises(RestartedError):
        ask(restart_at=last)
    assert (chat.forgotten, chat.turns) == (0, [])


@pytest.mark.parametrize("beams", [1, 2])
def test_restart_ends_the_model_too(beams, chat, parity_engine):
    started, ended = threading.Event(), threading.Event()

    def endless(requests):
        started.set()
        if requests[0].interrupt.wait(LIMIT):
            ended.set()
        return [Answer("said")]

    parity_engine.answer = endless
    asking = threading.Thread(target=lambda: pytest.raises(RestartedError, chat.answer, "Old?", num_beams=beams))
    asking.start()
    started.wait(LIMIT)
    chat.restart()
    asking.join(LIMIT)
    assert ended.is_set() and chat.turns == []


def test_a_restart_in_the_middle_of_the_real_models_answer(chat):
    """What the old answer leaves behind does not reach the new one."""
    chat.answer("Tell me.", max_new_tokens=2)
    stream = chat.stream("Everything.", max_new_tokens=500, min_new_tokens=500)
    next(stream)
    chat.restart()
    with pytest.raises(RestartedError):
        list(stream)
    lengths = {"max_new_tokens": 8, "min_new_tokens": 8}
    assert chat.answer("Now?", **lengths) == Chat(chat.engine).answer("Now?", **lengths)
    assert chat.reused_tokens == 0 and written(chat.turns) == ["Now?"]


def test_of_two_that_ask_at_once_one_is_refused(chat, script, monkeypatch):
    """While the parts of the first are read, too."""
    script("fine")
    slow, go = Video("slow.mp4"), threading.Event()
    monkeypatch.setattr(Video, "pictures", lambda self, room: go.wait(LIMIT) and [Picture(picture("red"))])
    answers = []
    first = threading.Thread(target=lambda: answers.append(chat.answer([slow, "A?"])))
    first.start()
    chat.answer("B?")
    go.set()
    first.join(LIMIT)
    assert answers == ["fine"] and written(chat.turns) == ["B?", f"{IMAGE} A?"]


def test_one_question_at_a_time(chat, script):
    script("one", " two")
    stream = chat.stream("First?")
    next(stream)
    with pytest.raises(UserError, match="still being answered"):
        chat.answer("Second?")
    list(stream)
    assert [turn.answer for turn in chat.turns] == ["one two"]


def test_abandoned_stream_takes_the_turn_back_and_ends_the_generation(chat, parity_engine):
    ended = threading.Event()

    def endless(requests):
        (request,), said = requests, ""
        while not request.interrupt.is_set():
            request.on_text(said := said + "word ")
        ended.set()
        return [Answer(said)]

    parity_engine.answer = endless
    stream = chat.stream("Tell me everything.")
    next(stream)
    stream.close()
    assert ended.is_set()
    assert chat.turns == []


def test_stop_ends_the_model_within_a_token_and_keeps_what_was_said(chat, parity_model):
    read = []
    handle = parity_model.llm.register_forward_hook(lambda *_: read.append(1))
    try:
        stream = chat.stream("Tell me everything.", max_new_tokens=500, min_new_tokens=500)
        next(stream)
        chat.stop()
        at_stop, texts = len(read), list(stream)
    finally:
        handle.remove()
    assert len(read) <= at_stop + 2
    assert chat.turns[0].answer == texts[-1] != ""
    assert chat.turns[0].answer.finish == "interrupt"
    assert isinstance(chat.answer("And?", max_new_tokens=2), str)
    assert chat.reused_tokens > 0


@pytest.mark.slow
def test_a_stopped_search_keeps_its_best_beam(chat):
    timer = threading.Timer(0.3, chat.stop)
    timer.start()
    answer = chat.answer("Tell me everything.", num_beams=2, max_new_tokens=500, min_new_tokens=500)
    assert answer.finish == "interrupt" and 0 < answer.new_tokens < 500
