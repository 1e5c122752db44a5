"""A conversation as JSON, pictures included."""

import json
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Turn
from minigpt4.conversation.pictures import Picture, Room
from minigpt4.models.splice import IMAGE_PLACEHOLDER, without_places

_VERSION = 1


def to_json(turns: list[Turn], waiting: list[Picture]) -> str:
    """Writes turns, and pictures that no question has been asked with yet.

    `{"version": 1, "turns": [{"question", "answer", "pictures": [data: URL, ...]}, ...], "pictures": [...]}`, where a
    question holds `<Img><ImageHere></Img>` for each of its pictures.
    """
    said = [{"question": t.question, "answer": t.answer, "pictures": [p.to_url() for p in t.pictures]} for t in turns]
    saved = {"version": _VERSION, "turns": said, "pictures": [p.to_url() for p in waiting]}
    return json.dumps(saved, ensure_ascii=False, indent=1)


def from_json(text: str, max_pixels: int, max_pictures: float) -> tuple[list[Turn], list[Picture]]:
    """Reads what `to_json` wrote.

    Args:
        max_pixels: of a picture; see `Room` for what all may have.
        max_pictures: how many there may be; infinite where the model sets no bound.

    Raises:
        UserError: it is not such a file, or too much; the turn at fault is named.
    """
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
    parts = [part.get("pictures") for part in [saved, *saved["turns"]] if isinstance(part, dict)]
    count = sum(len(urls) for urls in parts if isinstance(urls, list))
    if count > max_pictures:
        raise UserError(
            f"the saved conversation has {count} pictures; the model reads {int(max_pictures)} at most. Remove some."
        )
    turns, room = [], Room(max_pixels)
    for number, turn in enumerate(saved["turns"], start=1):
        try:
            turns.append(_turn(turn, room))
        except UserError as error:
            raise UserError(f"turn {number} of the saved conversation: {error}") from None
    if turns and turns[-1].answer is None:
        raise UserError("the last turn of the saved conversation has no answer. Remove it.")
    return turns, _pictures(saved.get("pictures", []), room)


def _turn(saved: Any, room: Room) -> Turn:
    question, answer = (saved.get(key) if isinstance(saved, dict) else None for key in ("question", "answer"))
    if not isinstance(question, str) or not isinstance(answer, str | None):
        raise UserError('"question" must be text, "answer" text or null.')
    try:
        f"{question}{answer}".encode()
    except UnicodeEncodeError:
        raise UserError("a character of it is only half there (a lone surrogate). Remove it.") from None
    pictures = _pictures(saved.get("pictures", []), room)
    if (places := question.count(IMAGE_PLACEHOLDER)) != len(pictures):
        raise UserError(f"{places} {IMAGE_PLACEHOLDER} but {len(pictures)} pictures. Give each its own.")
    return Turn(question, answer and without_places(answer), pictures)


def _pictures(saved: Any, room: Room) -> list[Picture]:
    if not isinstance(saved, list) or not all(isinstance(url, str) for url in saved):
        raise UserError('"pictures" must be a list of data: URLs.')
    return [Picture.from_url(url, room) for url in saved]
