"""LLaVA's conversations, and instructions without pictures: formats llava, llava_first_turn and unnatural."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt4.common.registry import registry
from minigpt4.conversation.conversation import Conversation, Part, Turn
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked, Size
from minigpt4.datasets.formats.values import text_of, value_of, wrong

logger = logging.getLogger(__name__)


@registry.register_format("llava")
class LlavaDataset(AnnotatedDataset):
    """`{"id", "conversations": [{"from", "value"}]}` about COCO's pictures; questions and answers take turns.

    A question that has no answer at the end is left out.
    """

    def picture(self, row: Any) -> str:
        return f"COCO_train2014_{value_of(row, 'id', str, int)}.jpg"

    def name(self, row: Any) -> Any:
        return row["id"]

    def asked(self, row: Any, size: Size) -> Asked:
        first, answer = _said(row)[:2]
        return Asked([_without_picture(first)], {answer: 1})

    def conversation(self, row: Any, file: Path | None) -> Conversation:
        said = _said(row)
        first, *later = said[::2]
        questions: list[list[Part]] = [[file, f" {_without_picture(first)} "], *([f"{text} "] for text in later)]
        answered = zip(questions, said[1::2], strict=False)
        return Conversation([Turn(question, answer) for question, answer in answered])


@registry.register_format("llava_first_turn")
class LlavaFirstTurn(LlavaDataset):
    """The same files; only the first question and answer are used."""

    conversation = AnnotatedDataset.conversation

    def asked(self, row: Any, size: Size) -> Asked:
        first, answer = _said(row)[:2]
        return Asked([self.text_processor(_without_picture(first))], {answer: 1})


@registry.register_format("unnatural")
class UnnaturalInstructions(AnnotatedDataset):
    """`{"instances": [{"instruction_with_input", "constraints", "output"}]}`, of which the first is used (Unnatural
    Instructions: Honovich et al. 2022). There are no pictures.
    """

    shows = False

    def read(self) -> list[Any]:
        rows = super().read()
        if count := sum(map(_says_none, rows)):
            logger.warning(
                "%s: in %d of %d samples the text 'None.' stands for no constraints; it is part of the question, as in "
                "the original. Write null to leave it out.", self.key, count, len(rows),
            )  # fmt: skip
        return rows

    def picture(self, row: Any) -> str:
        return ""

    def name(self, row: Any) -> Any:
        return row.get("id", "")

    def asked(self, row: Any, size: Size) -> Asked:
        (own, *_) = value_of(row, "instances", list) or [None]
        question = text_of(own, "instruction_with_input")
        if own["constraints"] is not None:  # where there are none, the key is there all the same
            question += f" {text_of(own, 'constraints')}"
        return Asked([self.text_processor(question)], {self.text_processor(text_of(own, "output")): 1})


def _says_none(row: Any) -> bool:
    try:
        return row["instances"][0]["constraints"].strip(" .").lower() == "none"
    except (LookupError, TypeError, AttributeError):
        return False  # it is named when it is drawn


def _said(row: Any) -> Sequence[str]:
    """The texts of a conversation, in order; their places say who speaks."""
    said = [text_of(turn, "value") for turn in value_of(row, "conversations", list)]
    if len(said) < 2:
        raise wrong(f"key 'conversations' has {len(said)} turns; expected a question and its answer at least")
    return said


def _without_picture(question: str) -> str:
    """The first question: the picture's own place goes, and its line breaks."""
    return re.sub("<image>|\n", "", question).strip()
