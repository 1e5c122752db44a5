"""A session: streaming, failures, several images, what is edited and taken back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.inference.chat import Chat
from minigpt4.inference.pictures import Video
from minigpt4.inference.requests import Answer, Decoding
from tests.inference.talking import IMAGE, picture, said, written
from tests.picture_files import write_video


@pytest.mark.slow
def test_stream_grows_to_the_answer(chat, parity_engine):
    options = {"max_new_tokens": 40, "min_new_tokens": 40}
    chat.upload_img(picture("red"))
    texts = list(chat.stream("What is this?", **options))
    again = Chat(parity_engine)
    again.upload_img(picture("red"))
    assert len(texts) > 3
    assert all(len(shorter) < len(longer) for shorter, longer in zip(texts[:-2], texts[1:-1], strict=True))
    assert texts[-1] == again.answer("What is this?", **options) == chat.turns[0].answer


def test_second_turn_reads_the_first(chat, script):
    calls = script("a red 7")
    chat.answer("Which digit?")
    chat.answer("Sure?")
    assert calls[1].prompt.endswith("Human: Which digit?###Assistant: a red 7###Human: Sure?###Assistant: ")


@pytest.mark.parametrize("pieces", [(), ("half an", " answer")])
@pytest.mark.parametrize("beams", [1, 2])
def test_failure_reaches_the_caller_and_takes_the_turn_back(chat, script, pieces, beams):
    chat.upload_img(picture("red"))
    script(*pieces, RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(chat.stream("Which digit?", num_beams=beams))
    assert chat.turns == []

    calls = script("a red 7")
    assert chat.answer("Which digit?") == "a red 7"
    assert calls[0].prompt.count(IMAGE) == 1  # the image is shown again


def test_an_answer_without_a_word_before_its_end_does_not_hang(chat, parity_engine):
    parity_engine.answer = lambda requests: [Answer("silent")]
    assert chat.answer("?") == "silent"


@pytest.mark.slow
def test_images_are_placed_where_they_were_shown(chat, script):
    calls = script("fine")
    chat.upload_img(picture("red"))
    chat.upload_img(picture("blue"))
    chat.answer("First?")
    chat.answer("Second?")
    chat.upload_img(picture("green"))
    chat.answer("Third?")
    assert written(chat.turns) == [IMAGE, f"{IMAGE} First?", "Second?", f"{IMAGE} Third?"]
    assert [len(call.images) for call in calls] == [2, 2, 3]
    assert torch.equal(calls[2].images[:2], calls[0].images)


@pytest.mark.slow
def test_several_images_with_the_real_model(chat):
    chat.upload_img(picture("red"))
    chat.upload_img(picture("blue"))
    assert isinstance(chat.answer("Compare.", max_new_tokens=3), str)
    assert isinstance(chat.answer("And now?", max_new_tokens=3, num_beams=2), str)


def test_image_shown_while_answering_belongs_to_the_next_question(chat, script):
    calls = script("one", " two")
    stream = chat.stream("First?")
    next(stream)
    chat.upload_img(picture("red"))
    list(stream)
    chat.answer("Second?")
    assert calls[1].prompt.count(IMAGE) == 1
    assert written(chat.turns)[1].startswith(IMAGE)


@pytest.mark.parametrize("words", ["<ImageHere>", "<Img><ImageHere></Img>", "<Image<ImageHere>Here>"])
def test_what_looks_like_a_picture_is_words_whoever_says_it(words, chat, script, parity_engine):
    calls = script(words)
    assert chat.answer([picture("red"), words]) == words
    (image, space, question) = chat.turns[0].question
    assert (image.image.size, space, question) == ((40, 30), " ", words)
    assert chat.undo()[1:] == [words]
    chat.answer([picture("red"), words])
    del parity_engine.answer
    assert isinstance(chat.answer(f"{words} and now?", max_new_tokens=2), str)
    assert len(calls[0].images) == len(chat.pictures) == 1
    asked = chat.turns[1].answer.prompt_tokens
    again = Chat(parity_engine)
    again.load(chat.save())
    again.undo()
    assert again.turns[0].answer == words
    assert list(again.stream(f"{words} and now?", max_new_tokens=2))[-1].prompt_tokens == asked


def test_pictures_in_a_message_have_limits_too(parity_engine):
    chat = Chat(parity_engine, max_pixels=1200)
    chat.answer([picture("red"), "Who?"], max_new_tokens=2)
    with pytest.raises(UserError, match="the picture has more than 0.0012 megapixels"):
        chat.answer([Image.new("RGB", (41, 30)), "Who?"], max_new_tokens=2)
    with pytest.raises(UserError, match="the conversation's pictures have more than 0.0048 megapixels together"):
        chat.answer([*map(picture, ["red"] * 4), "Who?"], max_new_tokens=2)
    assert len(chat.turns) == 1
    again = Chat(parity_engine, max_pixels=1200)
    again.load(chat.save())
    assert len(again.pictures) == 1


def test_beams_answer_in_one_piece(chat, script):
    calls = script("a", " b")
    assert list(chat.stream("?", num_beams=3)) == ["a b"]
    assert (calls[0].request.decoding, calls[0].request.max_new_tokens) == (Decoding(num_beams=3), 300)


def test_the_real_models_beams_answer_in_one_piece(chat):
    (answer,) = chat.stream("Where?", num_beams=2, max_new_tokens=4, min_new_tokens=4)
    assert (answer.finish, answer.new_tokens) == ("length", 4)


def test_parts_are_read_in_their_order_and_encoded_in_one_batch(chat, script, parity_model, monkeypatch):
    calls, encode, batches = script("fine"), parity_model.encode_img, []
    monkeypatch.setattr(parity_model, "encode_img", lambda pixels: batches.append(len(pixels)) or encode(pixels))
    chat.answer([picture("red"), picture("blue"), "compared with", picture("green"), "?"])
    assert written(chat.turns)[0] == f"{IMAGE}{IMAGE} compared with {IMAGE} ?"
    chat.answer("Sure?")
    assert batches == [3]
    assert [len(call.images) for call in calls] == [3, 3]
    alone = encode(chat.engine.processor(picture("green")).unsqueeze(0)).detach()
    torch.testing.assert_close(calls[0].images[2:], alone, atol=1e-5, rtol=0)


def test_parts_of_a_failed_question_are_taken_back_and_uploads_wait_on(chat, script):
    script(RuntimeError("out of memory"))
    chat.upload_img(picture("red"))
    with pytest.raises(RuntimeError):
        chat.answer([picture("blue"), "?"])
    assert (len(chat.pictures), chat.turns) == (1, [])


@pytest.mark.slow
def test_edit_and_regenerate_and_undo(chat, script):
    calls = script("fine")
    chat.upload_img(picture("red"), picture("blue"))
    chat.answer("One?")
    chat.answer([picture("green"), "Two?"])
    assert list(chat.regenerate())[-1] == "fine"
    assert calls[2].prompt == calls[1].prompt
    assert list(chat.edit(1, "Other?"))[-1] == "fine"
    assert written(chat.turns) == [IMAGE, f"{IMAGE} Other?"]
    assert len(calls[3].images) == len(chat.pictures) == 2
    parts = chat.undo()
    assert (chat.turns, chat.pictures, parts[2]) == ([], [], "Other?")
    chat.answer(parts)
    assert said(chat.turns) == [(f"{IMAGE}{IMAGE} Other?", "fine")]


def test_a_failed_edit_leaves_everything_as_it_was(chat, script):
    script("fine")
    chat.answer([picture("red"), "One?"])
    chat.answer("Two?")
    before = list(chat.turns)
    script("half", RuntimeError("out of memory"))
    for again in (chat.edit(0, "Other?"), chat.regenerate()):
        with pytest.raises(RuntimeError):
            list(again)
        assert chat.turns == before


def test_what_was_not_asked_cannot_be_changed(chat, script):
    script("fine")
    for change in (lambda: list(chat.regenerate()), chat.undo):
        with pytest.raises(UserError, match="Nothing was asked yet"):
            change()
    chat.upload_img(picture("red"), picture("blue"))
    chat.answer("One?")
    for index in (0, 2, -3):  # 0 shows a picture
        with pytest.raises(UserError, match=f"turn {index} was not asked"):
            list(chat.edit(index, "Other?"))


@pytest.mark.slow
def test_a_saved_conversation_continues_as_it_would_have(chat, parity_engine):
    chat.upload_img(picture("red"), picture("blue"))
    chat.answer("Compare.", max_new_tokens=6)
    chat.upload_img(picture("green"))
    other = Chat(parity_engine)
    other.load(chat.save())
    assert said(other.turns) == said(chat.turns) and len(other.pictures) == 3
    assert other.answer("And?", max_new_tokens=6) == chat.answer("And?", max_new_tokens=6)


def test_a_video_is_shown_as_frames(chat, script, tmp_path):
    file = write_video(tmp_path / "clip.mp4", [(0, 0, 12 * n) for n in range(20)])  # red grows
    calls = script("fine")
    chat.answer([Video(file, frames=4), "What happens?"])
    assert written(chat.turns)[0] == f"{IMAGE * 4} What happens?"
    assert len(calls[0].images) == 4
    reds = [np.asarray(shown.image)[..., 0].mean() for shown in chat.pictures]
    np.testing.assert_allclose(reds, [12 * n for n in (0, 5, 10, 15)], atol=8)
    chat.upload_img(Video(file, frames=99))
    assert len(chat.pictures) == 4 + 20
    no_video, missing = Path(__file__), tmp_path / "nix"
    wrong = (
        (0, file, "frames: 0 is out of"),
        (2, no_video, "can't be read as a video"),
        (2, missing, "nix does not exist"),
    )
    for frames, path, complaint in wrong:
        with pytest.raises(UserError, match=complaint):
            chat.upload_img(Video(path, frames=frames))
