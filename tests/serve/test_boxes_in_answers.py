"""Boxes of answers in pixels, wherever answers are given besides the page."""

import httpx
import pytest
from PIL import Image

from minigpt4.inference.chat import Chat
from minigpt4.inference.options import AnswerOptions
from minigpt4.inference.requests import Answer
from minigpt4.serve.terminal import Terminal
from tests.serve.asking import NAME, SCENES, user
from tests.serve.predicting import lines

SAID = "<p>a red 2</p> {<10><20><50><60>}"
BOXES = [{"phrase": "a red 2", "box": [20, 20, 100, 60]}]  # of a picture of 200 x 100


@pytest.fixture
def grounded(tiny, monkeypatch):
    """The model answers with a box; holds what it was asked."""
    asked = []

    def answer(requests):
        for request in requests:
            asked.append(request.prompt.turns[-1].words)
            request.on_token(3)
            if request.on_text:
                request.on_text(SAID)
            request.on_end(Answer(SAID, new_tokens=3, prompt_tokens=9))
        return [Answer(SAID, new_tokens=3, prompt_tokens=9) for _ in requests]

    monkeypatch.setattr(tiny, "answer", answer)
    return asked


@pytest.fixture
def wide(tmp_path):
    Image.new("RGB", (200, 100), "red").save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def test_predict(predict, grounded, wide):
    code, out, _ = predict("--image", wide, "--text", "[refer] the red 2")
    assert code == 0 and lines(out)[0]["boxes"] == BOXES


def test_predict_continues_after_answers_with_boxes(predict, grounded, wide, tmp_path):
    for _ in range(2):
        assert predict("--image", wide, "--text", "Where?", "--output", tmp_path / "out.jsonl")[0] == 0
    assert len(grounded) == 1


def test_the_api(client, grounded, wide):
    request = {"model": NAME, "messages": [user(SCENES[0], wide, "[refer] the red 2")], "max_tokens": 20}
    message = client.chat.completions.create(**request).choices[0].message
    assert (message.content, message.boxes) == (SAID, BOXES)
    *_, last = client.chat.completions.create(stream=True, **request)
    assert last.choices[0].delta.boxes == BOXES and last.choices[0].finish_reason == "stop"
    request["messages"] = [user("Where?")]  # without a picture there are no pixels
    assert not hasattr(client.chat.completions.create(**request).choices[0].message, "boxes")


def test_the_api_says_that_answers_may_have_boxes(api_url):
    schemas = httpx.get(f"{api_url}/openapi.json").json()["components"]["schemas"]
    message = schemas["Message"]
    assert "boxes" in message["properties"] and "boxes" not in message["required"]
    assert set(schemas["PhraseBox"]["properties"]) == {"phrase", "box"}


def test_the_terminal(tiny, grounded, wide, capsys):
    terminal = Terminal(Chat(tiny), AnswerOptions(), interactive=False, tasks=True)
    said = iter([f":img {wide}", ":task refer", "the red 2", ":task", ":task none", "what?", ":task nothing"])
    assert terminal.run(lambda: next(said, None) or (_ for _ in ()).throw(EOFError)) == 1
    assert [words.strip() for words in grounded] == ["[refer] the red 2", "what?"]
    out, err = capsys.readouterr()
    assert out.splitlines() == [SAID, "refer", SAID] and "box 20, 20, 100, 60 a red 2\n" in err
    assert "'nothing' is not a task" in err
