"""How the tokens of an answer are chosen, and when they end: options, seeds, stopping, streams."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

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
    """Options of `MiniGPTBase.generate`; see there.

    Raises:
        UserError: a value out of range.
    """

    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    do_sample: bool
    temperature: float
    top_p: float
    repetition_penalty: float
    length_penalty: float

    _RANGES: ClassVar[dict[str, tuple[str, Any]]] = {
        "max_new_tokens": ("1 or more", lambda d: d.max_new_tokens >= 1),
        "min_new_tokens": ("0 to max_new_tokens", lambda d: 0 <= d.min_new_tokens <= d.max_new_tokens),
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
            "do_sample": self.samples_beams,  # one beam's samples are drawn by `_Draw`
            **(sampling if self.samples_beams else {}),
        }

    def processors(self, seeds: Sequence[int]) -> LogitsProcessorList:
        """Between the LLM's logits and the choice of a token."""
        # as floats: an API gives 1 for 1.0, which transformers refuse
        # generate's own option skips as many new tokens as the prompt has embeddings
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty))])
        if self.do_sample and not self.samples_beams:
            processors += [TemperatureLogitsWarper(float(self.temperature)), TopKLogitsWarper(_TOP_K)]
            processors += [TopPLogitsWarper(float(self.top_p)), _Draw(seeds)]
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


class _Draw(LogitsProcessor):
    """Draws each row's next token with a generator of the row's own, and leaves no other choice.

    So a seed gives the same answer in any batch, whatever other threads draw.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = torch.stack([torch.rand((1,), generator=generator) for generator in self.generators])
        heap = scores.float().softmax(-1).cumsum(-1)
        token = (heap <= drawn.to(heap.device) * heap[:, -1:]).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


class Ending(StoppingCriteria):
    """Ends rows for a reason, and notes in `at` after how many tokens it first held for a prompt: the rest is padding.

    With beams a prompt has several rows, which change places: what holds for one of them says nothing of its answer.
    """

    def __init__(self, prompts: int):
        self.prompts = prompts
        self.at: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        ended = self.ended(input_ids)
        for row in (row for row, own in enumerate(ended) if own):
            self.at.setdefault(row * self.prompts // len(ended), input_ids.shape[1])
        return torch.tensor(ended, device=input_ids.device)

    def ended(self, input_ids: Tensor) -> list[bool]:
        """Whether each row ends here."""
        raise NotImplementedError


class Interrupt(Ending):
    """Ends a prompt's rows at the next token once its event is set."""

    def __init__(self, events: Sequence[Event]):
        super().__init__(len(events))
        self.events = events

    def ended(self, input_ids: Tensor) -> list[bool]:
        beams = len(input_ids) // self.prompts
        return [own for event in self.events for own in [event.is_set()] * beams]


class StopWords(Ending):
    """Ends a row whose text holds one of these words.

    transformers' own (`stop_strings`) prepares the whole vocabulary in each call, up to a second, and misses words
    whose characters are split over tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str], prompts: int = 1):
        super().__init__(prompts)
        self.tokenizer = tokenizer
        self.words = words
        # a token has a byte or more; three more may be the end of a character that the first one cuts
        self.tail = max(len(word.encode()) for word in words) + 3

    def ended(self, input_ids: Tensor) -> list[bool]:
        tails = self.tokenizer.batch_decode(input_ids[:, -self.tail :])
        return [any(word in tail for word in self.words) for tail in tails]


class Fanout(BaseStreamer):
    """Gives each row's tokens, [1] at a time, to its own streamer; a row that has ended still gets padding."""

    def __init__(self, streamers: Sequence[BaseStreamer]):
        self.streamers = streamers

    def put(self, value: Tensor) -> None:
        for streamer, tokens in zip(self.streamers, value, strict=True):
            streamer.put(tokens.reshape(-1))

    def end(self) -> None:
        for streamer in self.streamers:
            streamer.end()
