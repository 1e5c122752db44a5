"""What a model is asked and shown, and what it says."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minigpt4.conversation.conversation import Turn
from minigpt4.inference.engine import Engine
from minigpt4.inference.requests import Answer, Decoding, Request

IMAGE = "<Img><ImageHere></Img>"  # a picture of a conversation, in the prompt


class Call(NamedTuple):
    """What an engine was asked: the prompt as text, the embeddings of its pictures [n, rows, D], and all of it."""

    images: Tensor | None
    prompt: str
    request: Request


def picture(color: str) -> Image.Image:
    return Image.new("RGB", (40, 30), color)


def written(turns: Sequence[Turn]) -> list[str]:
    """The questions, as a prompt holds them."""
    return ["".join(part if isinstance(part, str) else IMAGE for part in turn.question) for turn in turns]


def said(turns: Sequence[Turn]) -> list[tuple[str, str | None]]:
    """Questions and answers; which pictures were shown does not matter."""
    return list(zip(written(turns), (turn.answer for turn in turns), strict=True))


def spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, one for each character, or for each byte of one that is not in the vocabulary."""
    known = tokenizer.get_vocab()
    pieces = [
        piece
        for char in text.replace(" ", "▁")
        for piece in ([char] if char in known else [f"<0x{byte:02X}>" for byte in char.encode()])
    ]
    return [known[piece] for piece in pieces]


def asked(
    engine: Engine, texts: Sequence[str], images: Any = None, max_new_tokens: int = 20, seed: int = 0, **options: Any
) -> list[Request]:
    """The requests of `Engine.generate`."""
    prompts = engine.prompter.parse_all(texts, images)
    return [Request(prompt, max_new_tokens, Decoding(**options), seed) for prompt in prompts]


def facts(answers: list[Answer]) -> list[tuple]:
    """What there is to an answer."""
    return [(answer, answer.prompt_tokens, answer.new_tokens, answer.finish) for answer in answers]
