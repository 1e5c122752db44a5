"""LLaVA's conversations, and instructions without pictures: formats llava, llava_first_turn and unnatural."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt4.common.registry import registry
from minigpt4.conversation.conversation import Conversation, Part, Turn
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked


@registry.register_format("llava")
class LlavaDataset(AnnotatedDataset):
    """`{"id", "conversations": [{"from", "value"}]}` about COCO's pictures; questions and answers take turns.

    A question that has no answer at the end is left out.
    """

    def picture(self, row: Any) -> str:
        return f"COCO_train2014_{row['id']}.jpg"

    def name(self, row: Any) -> Any:
        return row["id"]

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
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
    """The same files, of which the first question and its answer are used."""

    conversation = AnnotatedDataset.conversation

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        first, answer = _said(row)[:2]
        return Asked([self.text_processor(_without_picture(first))], {answer: 1})


@registry.register_format("unnatural")
class UnnaturalInstructions(AnnotatedDataset):
    """`{"instances": [{"instruction_with_input", "constraints", "output"}]}`, of which the first is used (Unnatural
    Instructions: Honovich et al. 2022). There are no pictures.
    """

    shows = False

    def picture(self, row: Any) -> str:
        return ""

    def name(self, row: Any) -> Any:
        return row.get("id", "")

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        own = row["instances"][0]
        constraints = own["constraints"]
        question = own["instruction_with_input"] + ("" if constraints is None else f" {constraints}")
        return Asked([self.text_processor(question)], {self.text_processor(own["output"]): 1})


def _said(row: Any) -> Sequence[str]:
    """The texts of a conversation, in order; who says them is told by their places."""
    said = [turn["value"] for turn in row["conversations"]]
    if len(said) < 2:
        raise ValueError("a question and its answer are the least")
    return said


def _without_picture(question: str) -> str:
    """The first question: the picture's own place goes, and its line breaks."""
    return re.sub("<image>|\n", "", question).strip()
