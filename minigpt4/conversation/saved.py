"""A conversation as JSON, pictures included."""

import json
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_IMAGE_PIXELS
from minigpt4.conversation.conversation import Turn
from minigpt4.conversation.pictures import Picture
from minigpt4.models.splice import IMAGE_PLACEHOLDER

_VERSION = 1


def to_json(turns: list[Turn], waiting: list[Picture]) -> str:
    """Writes turns, and pictures that no question has been asked with yet.

    `{"version": 1, "turns": [{"question", "answer", "pictures": [data: URL, ...]}, ...], "pictures": [...]}`, where a
    question holds `<Img><ImageHere></Img>` for each of its pictures.
    """
    said = [{"question": t.question, "answer": t.answer, "pictures": [p.to_url() for p in t.pictures]} for t in turns]
    saved = {"version": _VERSION, "turns": said, "pictures": [p.to_url() for p in waiting]}
    return json.dumps(saved, ensure_ascii=False, indent=1)


def from_json(text: str, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[list[Turn], list[Picture]]:
    """Reads what `to_json` wrote.

    Raises:
        UserError: it is not such a file, or a picture has more than `max_pixels`; the turn at fault is named.
    """
    try:
        saved = json.loads(text)
    except ValueError as error:
        raise UserError(f"the saved conversation is no JSON: {error}. Choose another file.") from None
    if not isinstance(saved, dict) or saved.get("version") != _VERSION or not isinstance(saved.get("turns"), list):
        raise UserError(
            f'the JSON holds no "turns" of "version": {_VERSION}. Choose a file that a conversation was saved to.'
        )
    turns = []
    for number, turn in enumerate(saved["turns"], start=1):
        try:
            turns.append(_turn(turn, max_pixels))
        except UserError as error:
            raise UserError(f"turn {number} of the saved conversation: {error}") from None
    if turns and turns[-1].answer is None:
        raise UserError("the last turn of the saved conversation has no answer. Remove it.")
    return turns, _pictures(saved.get("pictures", []), max_pixels)


def _turn(saved: Any, max_pixels: int) -> Turn:
    question, answer = (saved.get(key) if isinstance(saved, dict) else None for key in ("question", "answer"))
    if not isinstance(question, str) or not isinstance(answer, str | None):
        raise UserError('"question" must be text, "answer" text or null.')
    pictures = _pictures(saved.get("pictures", []), max_pixels)
    if (places := question.count(IMAGE_PLACEHOLDER)) != len(pictures):
        raise UserError(f"{places} {IMAGE_PLACEHOLDER} but {len(pictures)} pictures. Give each its own.")
    return Turn(question, answer, pictures)


def _pictures(saved: Any, max_pixels: int) -> list[Picture]:
    if not isinstance(saved, list):
        raise UserError(f'"pictures" must be a list, not {str(saved)[:40]!r}.')
    return [Picture.from_url(url, max_pixels) for url in saved]
