"""Saved conversations that somebody else may have written."""

import base64
import json

import pytest
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.chat import Chat
from minigpt4.conversation.conversation import IMAGE
from minigpt4.conversation.saved import from_json
from minigpt4.processors.picture_file import Room
from tests.conversation.test_chat import PROCESSOR
from tests.picture_files import bomb, file_of

SMALL = file_of(Image.new("RGB", (10, 10)))


def saved(*turns: dict, **more) -> str:
    return json.dumps({"version": 1, "turns": turns, **more})


def url(file) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 200_000, "is no JSON"),
        ('{"version": 2, "turns": {}}', 'has "version": 2; only 1 can be read. Load it where it was saved'),
        (saved({"question": "\ud800", "answer": "a"}), "turn 1 .*: a character of it is only half there"),
        (saved({"question": "a", "answer": "a"}, {"question": "a", "answer": "\udfff"}), "turn 2 .* only half there"),
        (saved(pictures=[json.loads("[" * 900 + "]" * 900)]), "must be a list of data: URLs"),
        (saved({"question": "a", "answer": "a", "pictures": [[]]}), "turn 1 .* must be a list of data: URLs"),
    ],
    ids=["deep", "version", "question", "answer", "nested", "list"],
)
def test_what_would_break_the_page_is_refused(text, complaint):
    with pytest.raises(UserError, match=complaint):
        from_json(text, Room(10**6))


def test_all_pictures_together_have_a_limit_and_none_over_it_is_decoded():
    of_four = {"question": IMAGE * 4, "answer": "a", "pictures": [url(SMALL)] * 4}
    turns, waiting = from_json(saved(of_four), Room(100))
    assert len(turns[0].pictures) == 4 and not waiting
    for more in ([of_four, of_four], []), ([of_four], [url(bomb(10, 10))]):  # which could not be decoded
        with pytest.raises(UserError, match="with it, .* more than 0.0004 megapixels together. Show fewer"):
            from_json(saved(*more[0], pictures=more[1]), Room(100))
    with pytest.raises(UserError, match="turn 1 .*: the picture has more than 9.9e-05 megapixels"):
        from_json(saved(of_four), Room(99))


def test_more_pictures_than_the_model_reads_are_refused_before_one_is_decoded(parity_model):
    chat, most = Chat(parity_model, PROCESSOR), parity_model.max_context_len // parity_model.rows_per_image
    turn = {"question": IMAGE, "answer": "a", "pictures": [url(bomb(10, 10))]}
    with pytest.raises(UserError, match=f"would have {most + 1} pictures; the model reads {most} at most. Show fewer"):
        chat.load(saved(*[turn] * most, pictures=[url(bomb(10, 10))]))
    chat.load(saved(pictures=[url(SMALL)] * most))
    assert len(chat.pictures) == most


def test_no_answer_makes_a_place_for_a_picture(parity_model):
    chat = Chat(parity_model, PROCESSOR)
    chat.load(saved({"question": "a", "answer": "<ImageHere> and <Image<ImageHere>Here>"}))
    assert chat.turns[0].answer == "  and <Image Here>"
    assert isinstance(chat.answer("And?", max_new_tokens=2), str)


def test_what_a_chat_was_shown_loads_again(parity_model, monkeypatch):
    monkeypatch.setattr("minigpt4.processors.picture_file.MAX_LARGEST_IMAGES", 1e-5)  # 640 pixels
    chat, other = Chat(parity_model, PROCESSOR), Chat(parity_model, PROCESSOR)
    chat.upload_img(*[Image.new("RGB", (20, 10))] * 3)
    with pytest.raises(UserError, match="with it, .* together"):
        chat.upload_img(Image.new("RGB", (20, 10)))
    other.load(chat.save())
    assert len(other.pictures) == 3
