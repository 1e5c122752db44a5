"""A dialogue, the one sample that goes from a file, a page, a request or a benchmark to the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

Part = Any  # of a question: text (str), or a picture in whatever form its user has it


@dataclass
class Turn:
    """One question and, once given, its answer.

    `question` is text and pictures in the order in which the model reads them; nothing is put between them.
    """

    question: list[Part]
    answer: str | None = None

    @property
    def pictures(self) -> list[Part]:
        """The pictures of the question, in order."""
        return [part for part in self.question if not isinstance(part, str)]

    @property
    def words(self) -> str:
        """The text of the question, without its pictures."""
        return "".join(part for part in self.question if isinstance(part, str))


@dataclass
class Conversation:
    """Turns in order.

    Attributes:
        system: text that replaces the system text of the model's template; None leaves that.
        continued: the last turn's answer is the beginning of one, which the model is to go on with.
        kind: how training asks. "dialogue": the first question in `model.prompt_template`, later ones in
            `model.turn_template`. "instruction": the one question in `model.prompt_template` where
            `model.chat_template` says so, else as it is. "caption": the question is pictures alone, and one of the
            model's own prompts asks about them.
    """

    turns: list[Turn]
    system: str | None = None
    continued: bool = False
    kind: Literal["dialogue", "instruction", "caption"] = "dialogue"

    @property
    def pictures(self) -> list[Part]:
        """All pictures, in order."""
        return [picture for turn in self.turns for picture in turn.pictures]


def spaced(parts: Iterable[Part]) -> list[Part]:
    """Puts a space between text and what comes before or after it, as the original's chat does."""
    found: list[Part] = []
    for part in parts:
        if found and (isinstance(part, str) or isinstance(found[-1], str)):
            found.append(" ")
        if part != "" or found:
            found.append(part)
    return found


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same parts, with texts that follow one another as one, and without empty ones."""
    found: list[Part] = []
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        if not is_text:
            found += group
        elif text := "".join(group):
            found.append(text)
    return found
