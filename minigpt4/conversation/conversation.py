"""A dialogue, the one sample that goes from a file, a page, a request or a benchmark to the model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
        continued: the last turn's answer is the beginning of one, which the model is to continue with.
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

    def showing(self, pictures_of: Callable[[Part], Sequence[Part]]) -> "Conversation":
        """The same with other pictures: in the place of each all that `pictures_of` gives for it, a space between."""
        turns = []
        for turn in self.turns:
            parts: list[Part] = []
            for part in turn.question:
                shown = [part] if isinstance(part, str) else pictures_of(part)
                parts += [other for one in shown for other in (" ", one)][1:]
            turns.append(replace(turn, question=parts))
        return replace(self, turns=turns)


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


def with_pictures(text: str, place: str, pictures: Sequence[Part]) -> list[Part]:
    """Cuts a text at each `place`, and puts the next picture there.

    Raises:
        ValueError: there are more places than pictures, or fewer.
    """
    first, *texts = text.split(place)
    return [first, *(part for pair in zip(pictures, texts, strict=True) for part in pair)]


def free_place(texts: Iterable[str]) -> str:
    """A character for the places of pictures that none of the texts holds; it is of Unicode's private use."""
    used = set().union(*texts)
    return next(c for c in map(chr, range(0xE000, 0xF900)) if c not in used)


def rewritten(parts: Sequence[Part], rewrite: Callable[[str], str]) -> list[Part]:
    """Rewrites the text of a question as one, with a character in the place of each picture.

    Raises:
        ValueError: the text that `rewrite` gives has more such places, or fewer.
    """
    place = free_place(part for part in parts if isinstance(part, str))
    text = "".join(part if isinstance(part, str) else place for part in parts)
    return with_pictures(rewrite(text), place, [part for part in parts if not isinstance(part, str)])
