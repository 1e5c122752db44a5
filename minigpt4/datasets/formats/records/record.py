"""One training conversation, and what may be wrong with it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Part, Turn
from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER

IMAGE = "<Img><ImageHere></Img>"  # a picture, as questions of records are rewritten
VIDEO = "<video>"
_SHOWN = re.compile(f"((?:<Img>)?{IMAGE_PLACEHOLDER}(?:</Img>)?|{VIDEO})")


class RecordError(UserError):
    """What is wrong with one record: the kind of problem, and the detail."""

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass
class Record:
    """One training conversation.

    Attributes:
        images: file names, or data: URLs; as many as the questions hold `<ImageHere>`, in that order.
        videos: the same of `<video>`. Where the questions hold neither, all belong in front of the first one.
        answers: one for each question.
        format: the keys by which its format was known.
        dropped: answers before the first question, which are left out.
    """

    questions: list[str]
    answers: list[str]
    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    format: str = field(default="", compare=False)
    dropped: int = field(default=0, compare=False)

    def placed(self, questions: list[str]) -> list[str]:
        """Its questions, perhaps rewritten by a processor, with one placeholder for each image and video.

        Raises:
            RecordError: they hold another number of placeholders.
        """
        text = "".join(questions)
        counts = {IMAGE_PLACEHOLDER: (len(self.images), "images"), VIDEO: (len(self.videos), "videos")}
        if not any(marker in text for marker in counts):
            return [" ".join([IMAGE] * len(self.images) + [VIDEO] * len(self.videos) + questions[:1]), *questions[1:]]
        for marker, (given, what) in counts.items():
            if (written := text.count(marker)) != given:
                raise RecordError(
                    "placeholder mismatch", f"{what} named: {given}, {marker} in its questions: {written}"
                )
        return questions

    def conversation(
        self, questions: list[str], images: Sequence[Part], videos: Sequence[Sequence[Part]]
    ) -> Conversation:
        """Its turns, with pictures in their places.

        Args:
            questions: those of `placed`.
            images: a picture for each image.
            videos: pictures for each video.
        """
        left_images, left_videos = iter(images), iter(videos)
        turns = []
        for question, answer in zip(questions, self.answers, strict=True):
            parts: list[Part] = []
            for text in _SHOWN.split(question):
                if text == VIDEO:
                    parts += [part for picture in next(left_videos) for part in (" ", picture)][1:]
                else:
                    parts.append(next(left_images) if IMAGE_PLACEHOLDER in text else text)
            turns.append(Turn(parts, answer))
        return Conversation(turns)


def short(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:30]}...{text[-47:]}"  # of a path, the end tells most
