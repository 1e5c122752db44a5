"""A conversation as JSON, pictures included."""

import json
from collections.abc import Sequence
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_TEXT, MAX_TURNS
from minigpt4.conversation.conversation import Turn
from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER, without_places
from minigpt4.inference.pictures import Picture, Reader, here
from minigpt4.processors.picture_file import Room

_VERSION = 1


def check_size(said: Sequence[tuple[str, str]]) -> None:
    """Refuses a conversation, of questions and answers, that is so long that it would hold up others.

    The last answer is not added to the rest, so that what could be asked can be saved and loaded again.

    Raises:
        UserError: it has more than `MAX_TURNS` turns or `MAX_TEXT` characters.
    """
    if len(said) > MAX_TURNS:
        raise UserError(f"the conversation has {len(said)} turns; {MAX_TURNS} are the most. Begin another.")
    lengths = [len(text) for turn in said for text in turn]
    if max(sum(lengths[:-1]), *lengths[-1:], 0) > MAX_TEXT:
        raise UserError(f"the conversation has more than {MAX_TEXT} characters. Begin another.")


def to_json(turns: list[Turn], waiting: list[Picture]) -> str:
    """Writes turns, and pictures that no question has been asked with yet.

    `{"version": 1, "turns": [{"question", "answer", "pictures": [data: URL, ...]}, ...], "pictures": [...]}`, where a
    question holds `<Img><ImageHere></Img>` for each of its pictures.
    """
    said = [{"question": t.question, "answer": t.answer, "pictures": [p.to_url() for p in t.pictures]} for t in turns]
    saved = {"version": _VERSION, "turns": said, "pictures": [p.to_url() for p in waiting]}
    return json.dumps(saved, ensure_ascii=False, indent=1)


def from_json(text: str, room: Room, reader: Reader = here) -> tuple[list[Turn], list[Picture]]:
    """Reads what `to_json` wrote. Sizes are checked before anything is made of it.

    Args:
        room: that of a conversation with no pictures yet.
        reader: opens the pictures, here or in another process.

    Raises:
        UserError: it is not such a file, or too much; the turn at fault is named.
    """
    if max(map(text.count, ",[{")) > 2 * MAX_TEXT:  # as many values would take long to parse; pictures are one each
        raise UserError("the saved conversation has far more values than one that was saved here. Choose another file.")
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the saved conversation is no JSON: {error}. Choose another file.") from None
    version = saved.get("version") if isinstance(saved, dict) else None
    if isinstance(version, int) and version != _VERSION:
        raise UserError(
            f'the saved conversation has "version": {version}; only {_VERSION} can be read. Load it where it was saved.'
        )
    if version != _VERSION or not isinstance(saved.get("turns"), list):
        raise UserError(
            f'the JSON holds no "turns" of "version": {_VERSION}. Choose a file that a conversation was saved to.'
        )
    check_size([(_text(turn, "question"), _text(turn, "answer")) for turn in saved["turns"]])
    parts = [part.get("pictures") for part in [saved, *saved["turns"]] if isinstance(part, dict)]
    room.expect(sum(len(urls) for urls in parts if isinstance(urls, list)))
    turns = []
    for number, turn in enumerate(saved["turns"], start=1):
        try:
            turns.append(_turn(turn, room, reader))
        except UserError as error:
            raise UserError(f"turn {number} of the saved conversation: {error}") from None
    if turns and turns[-1].answer is None:
        raise UserError("the last turn of the saved conversation has no answer. Remove it.")
    return turns, _pictures(saved.get("pictures", []), room, reader)


def _text(saved: Any, key: str) -> str:
    text = saved.get(key) if isinstance(saved, dict) else None
    return text if isinstance(text, str) else ""


def _turn(saved: Any, room: Room, reader: Reader) -> Turn:
    question, answer = (saved.get(key) if isinstance(saved, dict) else None for key in ("question", "answer"))
    if not isinstance(question, str) or not isinstance(answer, str | None):
        raise UserError('"question" must be text, "answer" text or null.')
    try:
        f"{question}{answer}".encode()
    except UnicodeEncodeError:
        raise UserError("a character of it is only half there (a lone surrogate). Remove it.") from None
    pictures = _pictures(saved.get("pictures", []), room, reader)
    if (places := question.count(IMAGE_PLACEHOLDER)) != len(pictures):
        raise UserError(f"{places} {IMAGE_PLACEHOLDER} but {len(pictures)} pictures. Give each its own.")
    return Turn(question, answer and without_places(answer), pictures)


def _pictures(saved: Any, room: Room, reader: Reader) -> list[Picture]:
    if not isinstance(saved, list) or not all(isinstance(url, str) for url in saved):
        raise UserError('"pictures" must be a list of data: URLs.')
    return [Picture.from_url(url, room, reader) for url in saved]
