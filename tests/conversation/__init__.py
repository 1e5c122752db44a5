"""What the tests of dialogues share."""

from collections.abc import Sequence
from typing import Any

from minigpt4.conversation.conversation import Part, Turn

PICTURE = object()  # as good as any other
SHOWN = "<Img><ImageHere></Img>"  # a picture, as recorded texts have it


def parts_of(text: str, picture: Part = PICTURE) -> list[Part]:
    """A recorded text's parts, with that picture in each place for one."""
    first, *texts = text.split(SHOWN)
    return [part for part in (first, *(p for rest in texts for p in (picture, rest))) if part != ""]


def turns_of(messages: Sequence[Sequence[Any]], picture: Part = PICTURE) -> list[Turn]:
    """Messages of two roles; a user's that follows another user's begins a turn of its own."""
    turns: list[Turn] = []
    for role, text in messages:
        if role == messages[0][0]:
            turns.append(Turn(parts_of(text, picture)))
        else:
            turns[-1].answer = text
    return turns
