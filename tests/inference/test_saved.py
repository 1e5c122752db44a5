"""Saved conversations that somebody else may have written."""

import base64
import json

import pytest
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_TEXT, MAX_TURNS
from minigpt4.conversation.conversation import Turn
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.chat import Chat
from minigpt4.inference.pictures import Picture
from minigpt4.inference.saved import from_json, to_json
from minigpt4.processors.picture_file import PixelBudget
from tests.inference.talking import IMAGE, picture, said, written
from tests.picture_files import bomb, file_of

SMALL = file_of(Image.new("RGB", (10, 10)))


def saved(*turns: dict, version: int = 1, **more) -> str:
    return json.dumps({"version": version, "turns": turns, **more})


def url(file) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 200_000, "is not JSON"),
        ('{"version": 3, "turns": {}}', 'has "version": 3; 1 and 2 can be read. Load it where it was saved'),
        (saved({"question": "\ud800", "answer": "a"}), "turn 1 .*: a character of it is only half there"),
        (saved({"question": "a", "answer": "a"}, {"question": "a", "answer": "\udfff"}), "turn 2 .* only half there"),
        (saved(pictures=[json.loads("[" * 900 + "]" * 900)]), "must be a list of data: URLs"),
        (saved({"question": "a", "answer": "a", "pictures": [[]]}), "turn 1 .* must be a list of data: URLs"),
        (saved({"question": ["a", "\ud800"], "answer": "a"}, version=2), "turn 1 .* only half there"),
        (
            saved({"question": ["a", 3], "answer": "a"}, version=2),
            'turn 1 .*: a part of "question" must be a text or {"p',
        ),
        (saved({"question": [{"picture": [[]]}], "answer": "a"}, version=2), "turn 1 .* must be a text or"),
        (saved({"question": {}, "answer": "a"}, version=2), '"question" must be a text or a list of parts, "answer"'),
    ],
    ids=["deep", "version", "question", "answer", "nested", "list", "half", "number", "picture", "object"],
)
def test_what_would_break_the_page_is_refused(text, complaint):
    with pytest.raises(UserError, match=complaint):
        from_json(text, PixelBudget(10**6))


@pytest.mark.parametrize(
    ("version", "of_four"),
    [
        (1, {"question": IMAGE * 4, "answer": "a", "pictures": [url(SMALL)] * 4}),
        (2, {"question": [{"picture": url(SMALL)}] * 4, "answer": "a"}),
    ],
)
def test_all_pictures_together_have_a_limit_and_none_over_it_is_decoded(version, of_four):
    turns, waiting = from_json(saved(of_four, version=version), PixelBudget(100))
    assert len(turns[0].pictures) == 4 and not waiting
    for more in ([of_four, of_four], []), ([of_four], [url(bomb(10, 10))]):  # which could not be decoded
        with pytest.raises(UserError, match="with it, .* more than 0.0004 megapixels together. Show fewer"):
            from_json(saved(*more[0], pictures=more[1], version=version), PixelBudget(100))
    with pytest.raises(UserError, match="turn 1 .*: the picture has more than 9.9e-05 megapixels"):
        from_json(saved(of_four, version=version), PixelBudget(99))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "turn"),
    [
        (1, {"question": IMAGE, "answer": "a", "pictures": [url(bomb(10, 10))]}),
        (2, {"question": [{"picture": url(bomb(10, 10))}], "answer": "a"}),
    ],
)
def test_more_pictures_than_the_model_reads_are_refused_before_one_is_decoded(version, turn, parity_engine):
    chat, most = Chat(parity_engine), int(parity_engine.prompter.max_pictures)
    with pytest.raises(UserError, match=f"would have {most + 1} pictures; the model reads {most} at most. Show fewer"):
        chat.load(saved(*[turn] * most, pictures=[url(bomb(10, 10))], version=version))
    chat.load(saved(pictures=[url(SMALL)] * most, version=version))
    assert len(chat.pictures) == most


@pytest.mark.parametrize("version", [1, 2])
def test_no_answer_makes_a_place_for_a_picture(version, parity_engine):
    chat = Chat(parity_engine)
    answer = "<ImageHere> and <Image<ImageHere>Here>"
    chat.load(saved({"question": "a", "answer": answer}, version=version))
    assert chat.turns == [Turn(["a"], answer)]
    assert isinstance(chat.answer("And?", max_new_tokens=2), str)


def test_version_1_is_read_as_what_it_was():
    red, green, blue = (url(file_of(picture(color))) for color in ("red", "green", "blue"))
    turns, waiting = from_json(
        saved(
            {"question": IMAGE, "answer": None, "pictures": [red]},
            {"question": f"{IMAGE} What <Img> is it?", "answer": "a 7", "pictures": [green]},
            {"question": "and <ImageHere>?", "answer": "b", "pictures": [blue]},  # somebody wrote it
            {"question": "Sure?", "answer": "yes"},
            pictures=[blue],
        ),
        PixelBudget(),
    )
    assert written(turns) == [IMAGE, f"{IMAGE} What <Img> is it?", f"and {IMAGE}?", "Sure?"]
    assert [turn.answer for turn in turns] == [None, "a 7", "b", "yes"]
    shown = [own.image.getpixel((0, 0)) for own in (*(p for turn in turns for p in turn.pictures), *waiting)]
    assert shown == [own.getpixel((0, 0)) for own in map(picture, ("red", "green", "blue", "blue"))]


def test_version_2_holds_parts_in_their_order():
    parts = [picture("red"), "a <ImageHere> or", picture("blue"), " <Img>", "?"]
    turns = [Turn([part if isinstance(part, str) else Picture(part) for part in parts], "b")]
    text = to_json(turns, [Picture(picture("green"))])
    assert json.loads(text)["version"] == 2
    read, waiting = from_json(text, PixelBudget())
    assert [part if isinstance(part, str) else part.image.getpixel((0, 0)) for part in read[0].question] == [
        (255, 0, 0),
        "a <ImageHere> or",
        (0, 0, 255),
        " <Img>?",
    ]
    assert (read[0].answer, len(read), len(waiting)) == ("b", 1, 1)
    assert to_json(read, waiting) == text


def test_what_a_chat_was_shown_loads_again(parity_engine, monkeypatch):
    monkeypatch.setattr("minigpt4.processors.picture_file.MAX_LARGEST_IMAGES", 1e-5)  # 640 pixels
    chat, other = Chat(parity_engine), Chat(parity_engine)
    chat.upload_img(*[Image.new("RGB", (20, 10))] * 3)
    with pytest.raises(UserError, match="with it, .* together"):
        chat.upload_img(Image.new("RGB", (20, 10)))
    other.load(chat.save())
    assert len(other.pictures) == 3


@pytest.mark.slow
def test_turns_and_words_have_limits_before_anything_is_made_of_them(monkeypatch):
    monkeypatch.setattr("minigpt4.inference.saved.Turn", None)  # not even a turn
    said = {"question": "a", "answer": "b"}
    long = {"question": "a" * MAX_TEXT, "answer": "b"}
    for turns, complaint in (
        ([said] * 150_000, f"has 150000 turns; {MAX_TURNS} are the most. Begin another"),
        ([1] * (MAX_TURNS + 1), f"has {MAX_TURNS + 1} turns"),
        ([long, said], f"has more than {MAX_TEXT} characters. Begin another"),
        ([{"question": "a", "answer": "b" * (MAX_TEXT + 1)}], f"has more than {MAX_TEXT} characters"),
    ):
        with pytest.raises(UserError, match=complaint):
            from_json(saved(*turns), PixelBudget())
    monkeypatch.setattr("minigpt4.inference.saved.json.loads", None)
    for text in ("[" + "1," * 2 * MAX_TEXT, "[]," * 2 * MAX_TEXT, '{"a":' * 2 * MAX_TEXT):
        with pytest.raises(UserError, match="far more values than one that was saved here"):
            from_json(text + ",[{", PixelBudget())


@pytest.mark.slow
def test_text_in_many_parts_is_read_as_one():
    """In a time that does not grow with the square of their number."""
    many = {"question": ["a"] * MAX_TEXT, "answer": ""}
    (turn,), _ = from_json(saved(many, version=2), PixelBudget())
    assert turn.question == ["a" * MAX_TEXT]


def test_what_could_be_asked_loads_again(parity_engine, monkeypatch):
    monkeypatch.setattr("minigpt4.inference.saved.MAX_TURNS", 3)
    chat, other = Chat(parity_engine), Chat(parity_engine)
    for _ in range(3):
        chat.answer("a", max_new_tokens=1)
    with pytest.raises(UserError, match="the conversation has 4 turns; 3 are the most"):
        chat.answer("a")
    other.load(chat.save())
    assert said(other.turns) == said(chat.turns) and len(chat.turns) == 3

    monkeypatch.setattr("minigpt4.inference.saved.MAX_TEXT", 40)
    chat.restart()
    chat.answer("a" * 40, max_new_tokens=8)
    with pytest.raises(UserError, match="the conversation has more than 40 characters"):
        chat.answer("a")
    other.load(chat.save())
    assert said(other.turns) == said(chat.turns)


def test_a_book_is_not_encoded_to_know_that_it_must_be_forgotten(parity_engine, monkeypatch):
    lengths, encode, prompter = [], Prompter.encode, parity_engine.prompter

    def note(self, text: str) -> list[int]:
        lengths.append(len(text))
        return encode(self, text)

    chat = Chat(parity_engine)
    chat.load(saved(*[{"question": "a word", "answer": "b " * 400}] * 490))
    monkeypatch.setattr(Prompter, "encode", note)
    chat.answer("c", max_new_tokens=1)
    assert chat.forgotten > 400
    assert max(lengths) <= prompter.window * max(map(len, prompter.tokenizer.get_vocab()))
    plain = len(prompter.layout(["b " * 99]))
    assert prompter.length(["b " * 99], plain) == plain
    assert prompter.window < prompter.length(["b " * 10**6], prompter.window) < 2 * 10**6


@pytest.mark.parametrize(
    ("saved", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", 'holds no "turns" of "version": 2'),
        (
            '{"version": 1, "turns": [{"question": 3}]}',
            'turn 1 of the saved conversation: "question" must be a text or a list',
        ),
        (f'{{"version": 1, "turns": [{{"question": "{IMAGE}", "answer": ""}}]}}', "turn 1 .* 1 <ImageHere> but 0 pict"),
        ('{"version": 1, "turns": [{"question": "a", "answer": null}]}', "the last turn .* has no answer"),
        ('{"version": 1, "turns": [], "pictures": ["http://x"]}', "not a data: URL but 'http://x'"),
        ('{"version": 1, "turns": [], "pictures": ["data:image/png;base64,AAAA"]}', "can't be read as a picture"),
        ('{"version": 1, "turns": [], "pictures": 3}', '"pictures" must be a list'),
    ],
)
def test_a_file_that_is_no_saved_conversation(saved, complaint, chat, script):
    script("fine")
    chat.answer("One?")
    with pytest.raises(UserError, match=complaint):
        chat.load(saved)
    assert chat.turns == [Turn(["One?"], "fine")]
