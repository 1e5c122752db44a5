"""How the tokens of an answer are chosen: options and seeds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minigpt4.common.errors import UserError

_TOP_K = 50  # the originals sampled with the default of their transformers
_TORCHS_GENERATOR = Lock()
LEAST_TEMPERATURE = 0.01  # below, there is nothing left to draw, and divisions overflow


def draw_seeds(count: int) -> list[int]:
    """Draws seeds of answers from torch's generator."""
    with _TORCHS_GENERATOR:  # else they would be those that `seeded` beams draw next, and theirs others
        return torch.randint(2**62, (count,)).tolist()


@dataclass(frozen=True)
class Decoding:
    """How the tokens of an answer are chosen: `AnswerOptions` says what each field does.

    Answers that are decoded alike can share a batch.

    Raises:
        UserError: a value out of range.
    """

    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0

    _RANGES: ClassVar[dict[str, tuple[str, Any]]] = {
        "min_new_tokens": ("0 or more, at most max_new_tokens", lambda d: d.min_new_tokens >= 0),
        "num_beams": ("1 or more", lambda d: d.num_beams >= 1),
        "temperature": (
            f"{LEAST_TEMPERATURE} or more; for none, set do_sample=False",
            lambda d: not d.do_sample or d.temperature >= LEAST_TEMPERATURE,
        ),
        "top_p": ("more than 0, at most 1", lambda d: 0 < d.top_p <= 1),
        "repetition_penalty": ("more than 0; 1 is none", lambda d: d.repetition_penalty > 0),
    }

    def __post_init__(self) -> None:
        for name, (range_, holds) in self._RANGES.items():
            if not holds(self):
                raise UserError(f"{name}: {getattr(self, name)} is out of range. Set it to {range_}.")

    @property
    def samples_beams(self) -> bool:
        return self.do_sample and self.num_beams > 1

    def config(self) -> dict[str, Any]:
        """The part of transformers' GenerationConfig that does not depend on the prompt."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": _TOP_K}
        return {
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
            "do_sample": self.samples_beams,  # one beam's samples are drawn by `SeededDraw`
            **(sampling if self.samples_beams else {}),
        }

    def processors(self, seeds: Sequence[int]) -> LogitsProcessorList:
        """Between the LLM's logits and the choice of a token."""
        # as floats: an API gives 1 for 1.0, which transformers refuse
        # generate's own option skips as many new tokens as the prompt has embeddings
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty))])
        if self.do_sample and not self.samples_beams:
            processors += [TemperatureLogitsWarper(float(self.temperature)), TopKLogitsWarper(_TOP_K)]
            processors += [TopPLogitsWarper(float(self.top_p)), SeededDraw(seeds)]
        return processors

    @contextmanager
    def seeded(self, seeds: Sequence[int]) -> Iterator[None]:
        """Sampled beams draw from torch's one generator, which only one thread at a time may then use and seed."""
        if not self.samples_beams:
            yield
            return
        with _TORCHS_GENERATOR, torch.random.fork_rng():
            torch.manual_seed(seeds[0])
            yield


class SeededDraw(LogitsProcessor):
    """Draws each row's next token with a generator of the row's own, and leaves no other choice.

    So a seed gives the same answer in any batch, whatever other threads draw.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = torch.stack([torch.rand((1,), generator=generator) for generator in self.generators])
        cumulative = scores.float().softmax(-1).cumsum(-1)
        token = (cumulative <= drawn.to(cumulative.device) * cumulative[:, -1:]).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)
