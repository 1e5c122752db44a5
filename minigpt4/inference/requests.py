"""What is asked of a model, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, Protocol

from PIL import Image
from torch import Tensor
from typing_extensions import Self

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Part
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.caches import KeptCache
from minigpt4.inference.decoding import Decoding

Finish = Literal["stop", "length", "interrupt", "error"]
LengthNorm = Literal["mean", "sum", "original"]  # how candidate answers of different lengths compare, see `ranking`


class Answer(str):
    """An answer's text, what it took, and how it ended.

    `finish`: "stop" the LLM ended it; "length" it had no room for more; "interrupt" somebody ended it; "error" it
    failed, with the exception in `error` and no text. Tokens include image rows and the token that ends an answer.
    """

    prompt_tokens = 0
    new_tokens = 0
    finish: Finish = "stop"
    error: Exception | None = None

    def __new__(cls, text: str = "", **about: Any) -> Self:
        answer = super().__new__(cls, text)
        vars(answer).update(about)
        return answer


@dataclass(eq=False)
class Request:
    """What is asked of a model.

    Attributes:
        prompt: a conversation; or what the LLM is to read as it is, see `Prompter.parse`. Its pictures are `Picture`s,
            pixels [3, H, W] from the model's processor, or embeddings [rows, D].
        max_new_tokens: most tokens of the answer; where the LLM's window has room for fewer, those.
        seed: of sampling. The same seed draws the same answer in any batch and beside any thread; None draws one.
            Sampled beams take a batch's first seed.
        stops: strings before which the answer ends, besides the template's.
        interrupt: ends the answer at the next token once it is set.
        on_token: called with the number of tokens so far, at each.
        on_text: called with the whole text so far, whenever it has grown; with beams in the end alone.
        on_end: called with the answer as soon as it has ended, whether or not others of its batch have.
        kept: what the LLM has read before and need not read again, if this is the only request. Beams leave it alone.

    Raises:
        UserError: a value is out of range.
    """

    prompt: Conversation | Sequence[Part]
    max_new_tokens: int = 20
    decoding: Decoding = Decoding()
    seed: int | None = None
    stops: tuple[str, ...] = ()
    interrupt: Event = field(default_factory=Event)
    on_token: Callable[[int], None] = lambda _: None
    on_text: Callable[[str], None] | None = None
    on_end: Callable[[Answer], None] = lambda _: None
    kept: KeptCache | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: {self.max_new_tokens} is out of range. Set it to 1 or more.")
        if self.decoding.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens: {self.decoding.min_new_tokens} is out of range. Set it to 0 to max_new_tokens."
            )


class Answerer(Protocol):
    """What answers requests: an `Engine`, or what stands for a model in another process.

    Attributes:
        prompter: lays out conversations for that model.
        processor: makes of a PIL image the pixels [3, H, W] that the model sees.
    """

    prompter: Prompter
    processor: Callable[[Image.Image], Tensor]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers each request as if it were alone; one that fails has an `error`."""
        ...

    def rank(
        self, prompts: Sequence[Sequence[Part]], answers: Sequence[Sequence[str]], length_norm: LengthNorm = "mean"
    ) -> list[list[int]]:
        """The numbers of each prompt's candidate answers, the most likely first; see `ranking.rank`."""
        ...

    def embeddings(self, pictures: Sequence[Part]) -> Any:
        """Encodes pictures in advance; each `Picture` caches its embedding."""
        ...


def raise_first(answers: Sequence[Answer]) -> None:
    """Raises the first error; in a batch, with the number of its prompt."""
    for number, answer in enumerate(answers, start=1):
        if (error := answer.error) is not None:
            if len(answers) == 1:
                raise error
            kind = UserError if isinstance(error, UserError) else RuntimeError
            raise kind(f"prompt {number} of {len(answers)}: {error}") from error
