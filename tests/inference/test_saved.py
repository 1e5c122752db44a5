"""Saved conversations that somebody else may have written."""

import base64
import json

import pytest
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_TEXT, MAX_TURNS
from minigpt4.conversation.conversation import IMAGE
from minigpt4.inference.chat import Chat
from minigpt4.inference.saved import from_json
from minigpt4.processors.picture_file import Room
from tests.inference.test_chat import PROCESSOR
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


def test_turns_and_words_have_limits_before_anything_is_made_of_them(monkeypatch):
    monkeypatch.setattr("minigpt4.inference.saved._turn", None)  # not even a turn
    said = {"question": "a", "answer": "b"}
    long = {"question": "a" * MAX_TEXT, "answer": "b"}
    for turns, complaint in (
        ([said] * 150_000, f"has 150000 turns; {MAX_TURNS} are the most. Begin another"),
        ([1] * (MAX_TURNS + 1), f"has {MAX_TURNS + 1} turns"),
        ([long, said], f"has more than {MAX_TEXT} characters. Begin another"),
        ([{"question": "a", "answer": "b" * (MAX_TEXT + 1)}], f"has more than {MAX_TEXT} characters"),
    ):
        with pytest.raises(UserError, match=complaint):
            from_json(saved(*turns), Room())
    monkeypatch.setattr("minigpt4.inference.saved.json.loads", None)
    for text in ("[" + "1," * 2 * MAX_TEXT, "[]," * 2 * MAX_TEXT, '{"a":' * 2 * MAX_TEXT):
        with pytest.raises(UserError, match="far more values than one that was saved here"):
            from_json(text + ",[{", Room())


def test_what_could_be_asked_loads_again(parity_model, monkeypatch):
    monkeypatch.setattr("minigpt4.inference.saved.MAX_TURNS", 3)
    chat, other = Chat(parity_model, PROCESSOR), Chat(parity_model, PROCESSOR)
    for _ in range(3):
        chat.answer("a", max_new_tokens=1)
    with pytest.raises(UserError, match="the conversation has 4 turns; 3 are the most"):
        chat.answer("a")
    other.load(chat.save())
    assert other.turns == chat.turns and len(chat.turns) == 3

    monkeypatch.setattr("minigpt4.inference.saved.MAX_TEXT", 40)
    chat.restart()
    chat.answer("a" * 40, max_new_tokens=8)
    with pytest.raises(UserError, match="the conversation has more than 40 characters"):
        chat.answer("a")
    other.load(chat.save())
    assert other.turns == chat.turns


def test_a_book_is_not_encoded_to_know_that_it_must_be_forgotten(parity_model, monkeypatch):
    lengths, encode = [], parity_model.encode_text

    def note(text: str) -> list[int]:
        lengths.append(len(text))
        return encode(text)

    chat = Chat(parity_model, PROCESSOR)
    chat.load(saved(*[{"question": "a word", "answer": "b " * 400}] * 490))
    monkeypatch.setattr(parity_model, "encode_text", note)
    chat.answer("c", max_new_tokens=1)
    assert chat.forgotten > 400
    assert max(lengths) <= parity_model.max_context_len * max(map(len, parity_model.llama_tokenizer.get_vocab()))
    plain = len(parity_model.layout("b " * 99))
    assert parity_model.length("b " * 99, plain) == plain
    assert parity_model.max_context_len < parity_model.length("b " * 10**6, parity_model.max_context_len) < 2 * 10**6
