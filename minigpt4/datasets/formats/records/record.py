"""One training conversation, and what may be wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Part, Turn, rewritten

IMAGE_MARKER, VIDEO_MARKER = "<image>", "<video>"  # LLaVA's, in the text of a question


class RecordError(UserError):
    """What is wrong with one record: the kind of problem, and the detail."""

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True)
class File:
    """A picture or a video that a record names: a file name or a `data:` URL. It is not opened yet."""

    name: str
    video: bool = False


@dataclass
class Record:
    """One training conversation.

    Attributes:
        conversation: its pictures are `File`s.
        format: the keys by which its format was known.
        dropped: answers before the first question, which are left out.
    """

    conversation: Conversation
    format: str
    dropped: int = 0

    def processed(self, processor: Callable[[str], str]) -> Conversation:
        """The conversation, with the text of each question, behind pictures that it begins with, as `processor` has it.

        Raises:
            RecordError: the processor cut off the place of a picture.
        """
        turns = []
        for turn in self.conversation.turns:
            before, rest = split_leading(turn.question)
            try:
                question = [*before, *rewritten(rest, processor)]
            except ValueError:
                raise RecordError(
                    "placeholder mismatch", "its text processor cuts off the place of a picture. Set max_words higher"
                ) from None
            turns.append(Turn(question, turn.answer))
        return Conversation(turns)


def split_leading(question: list[Part]) -> tuple[list[Part], list[Part]]:
    """The pictures that a question begins with, and spaces between them; and the rest."""
    words = (i for i, part in enumerate(question) if isinstance(part, str) and part.strip(" "))
    start = next(words, len(question))
    return question[:start], question[start:]


def short(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:30]}...{text[-47:]}"  # of a path, the end tells most
