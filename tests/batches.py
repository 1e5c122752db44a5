"""Batches as data workers make them of conversations."""

from collections.abc import Iterable

from torch import Tensor

from minigpt4.conversation.conversation import Conversation, Part, Turn
from minigpt4.conversation.prompter import Prompter
from minigpt4.datasets.loading import Batch, LayOut, collate


def captioned(pictures: Iterable[Tensor], captions: Iterable[str]) -> list[Conversation]:
    """Each picture with its caption, as stage 1 has them."""
    return [Conversation([Turn([p], text)], kind="caption") for p, text in zip(pictures, captions, strict=True)]


def instructed(answer: str, *question: Part) -> Conversation:
    """An instruction and what answers it."""
    return Conversation([Turn(list(question), answer)], kind="instruction")


def batch_of(prompter: Prompter, conversations: Iterable[Conversation]) -> Batch:
    """A training batch, without anything drawn."""
    lay_out = LayOut(prompter, training=False)
    return collate([lay_out({"conversation": own, "image_id": f"#{i}"}) for i, own in enumerate(conversations)])
