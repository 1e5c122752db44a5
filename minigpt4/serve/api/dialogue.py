"""From the messages of a request to the one string that the LLM reads."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Template, TokenizerTemplate, Turn
from minigpt4.conversation.prompter import without_places
from minigpt4.inference.chat import turns_of
from minigpt4.inference.pictures import Picture
from minigpt4.serve.api.messages import ImagePart, Message, SystemMessage, TextPart, UserMessage

_SOME_PICTURE = Picture(Image.new("RGB", (1, 1)))  # a prompt holds where pictures are, not which


class Dialogue(NamedTuple):
    """What the LLM is to read.

    Attributes:
        prompt: with a place for each picture.
        images: the URLs of the pictures, in order.
        begun: the beginning of the answer, where the client wrote it; the prompt ends with it.
    """

    prompt: str
    images: list[str]
    begun: str


def render(template: Template | TokenizerTemplate, messages: Sequence[Message]) -> Dialogue:
    """Writes a request's messages as one prompt.

    System messages at the beginning are joined to the system text. A later one stands before the question that follows
    it, or is one itself. Answers in a row are joined, and one that no question precedes answers an empty one.

    Raises:
        UserError: the template refuses the dialogue.
    """
    # nothing but system messages: they are the question
    first = next((at for at, message in enumerate(messages) if not isinstance(message, SystemMessage)), 0)
    turns: list[Turn] = []
    images: list[str] = []
    waiting: list[str] = []  # system texts before the next question
    for kind, group in groupby(messages[first:], type):
        if kind is UserMessage:
            for parts in map(_parts, group):
                images += [part.url for part in parts if isinstance(part, ImagePart)]
                (turn,) = turns_of([], [part.text if isinstance(part, TextPart) else _SOME_PICTURE for part in parts])
                turns.append(Turn("\n".join([*waiting, turn.question])))
                waiting = []
        elif kind is SystemMessage:
            waiting = list(map(_text, group))
        else:
            if waiting or not turns:
                turns.append(Turn("\n".join(waiting)))
                waiting = []
            turns[-1].answer = "\n".join(map(_text, group))
    if waiting:
        turns.append(Turn("\n".join(waiting)))
    begun = (turns[-1].answer or "").lstrip()
    # tokens of words begin with the space before them: one at the end would stand alone
    turns[-1].answer = begun.rstrip(" ") or None
    system = [_text(message) for message in messages[:first]]
    return Dialogue(_prompt(template, "\n".join(system) if system else None, turns), images, begun)


def _prompt(template: Template | TokenizerTemplate, system: str | None, turns: list[Turn]) -> str:
    if system is not None:
        try:
            return template.with_system(system).prompt(turns, continued=True)
        except UserError:  # no place for it: the tiny model answers as well with it there, and worse behind the picture
            turns = [replace(turns[0], question="\n".join(filter(None, [system, turns[0].question]))), *turns[1:]]
    return template.prompt(turns, continued=True)


def _parts(message: Message) -> Sequence[TextPart | ImagePart]:
    content = message.content
    return [TextPart(type="text", text=content)] if isinstance(content, str) else content or []


def _text(message: Message) -> str:
    return without_places("\n".join(part.text for part in _parts(message) if isinstance(part, TextPart)))
