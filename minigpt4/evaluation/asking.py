"""From a benchmark's questions to an engine's answers, in batches that read each picture once."""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minigpt4.common.errors import UserError, first_line
from minigpt4.conversation.conversation import Conversation, Part, Turn, spaced
from minigpt4.evaluation.benchmark import Benchmark, Question
from minigpt4.inference.engine import Engine, Processor
from minigpt4.inference.requests import Answer, Request
from minigpt4.processors.picture_file import open_image
from minigpt4.processors.video import open_video

Condition = Literal["trained", "untrained_projection", "shuffled_images", "blank_images"]


@dataclass(frozen=True)
class Media:
    """What is seen of a question: a picture, or a video as so many frames."""

    source: Path | bytes
    frames: int = 0  # of a picture

    def images(self, blank: bool = False) -> list[Image.Image]:
        """The picture, or the video's frames; black ones of the same size if `blank`.

        Raises:
            UserError: it can't be read.
        """
        if self.frames:
            assert isinstance(self.source, Path)
            images = open_video(self.source, self.frames)
        else:
            images = [open_image(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source)]
        return [Image.new("RGB", image.size) for image in images] if blank else images

    @property
    def name(self) -> str:
        """A file's name; of bytes their checksum."""
        return str(self.source) if isinstance(self.source, Path) else sha256(self.source).hexdigest()


@dataclass(frozen=True)
class StoredQuestion:
    """A question as it is stored beside its answer, see `inference.results`."""

    question: Question
    shown: tuple[Media, ...]

    @property
    def id(self) -> str:
        return self.question.id

    def echo(self) -> dict[str, Any]:
        """Stored fields; an earlier line with equal fields answers the question."""
        names = {"images": [Path(shown.name).name for shown in self.shown]} if self.shown else {}
        return {"id": self.question.id, "prompt": self.question.prompt, **names}


def asked(benchmark: Benchmark, n_frms: int) -> list[StoredQuestion]:
    """What a benchmark asks; a video is shown as `n_frms` frames."""
    return [
        StoredQuestion(q, (*map(Media, q.pictures), *(Media(video, n_frms) for video in q.videos)))
        for q in benchmark.questions
    ]


def adjacent(questions: Sequence[StoredQuestion]) -> list[StoredQuestion]:
    """The questions in an order in which those about the same pictures follow one another."""
    first: dict[tuple[Media, ...], int] = {}
    for question in questions:
        first.setdefault(question.shown, len(first))
    return sorted(questions, key=lambda question: first[question.shown])


def shuffled(questions: Sequence[StoredQuestion]) -> dict[Media, Media]:
    """Another picture for each: half the sorted list away, so never the same where there are two."""
    pictures = sorted({shown for question in questions for shown in question.shown}, key=lambda shown: shown.name)
    return {own: pictures[(i + len(pictures) // 2) % len(pictures)] for i, own in enumerate(pictures)}


class _Pixels(Dataset):
    """For each batch the pixels, each [n, 3, H, W], that the one before it has not needed."""

    def __init__(
        self,
        batches: Sequence[Sequence[StoredQuestion]],
        processor: Processor,
        condition: Condition,
        other: Mapping[Media, Media],
    ):
        self.processor, self.blank, self.other = processor, condition == "blank_images", other
        self.new: list[dict[Media, str]] = []  # with the place of a question that shows it
        before: set[Media] = set()
        for batch in batches:
            needed = {shown: own.question.place for own in batch for shown in own.shown}
            self.new.append({shown: place for shown, place in needed.items() if shown not in before})
            before = set(needed)

    def __len__(self) -> int:
        return len(self.new)

    def __getitem__(self, number: int) -> dict[Media, Tensor]:
        return {own: self._read(own, place) for own, place in self.new[number].items()}

    def _read(self, shown: Media, place: str) -> Tensor:
        try:
            images = self.other.get(shown, shown).images(self.blank)
        except UserError as error:
            kept = "All answers so far are kept: put a whole file there and continue without --overwrite."
            raise UserError(f"{place}: {error} {kept}".removeprefix(": ")) from None
        return torch.stack([self.processor(image) for image in images])


def answers_to(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[StoredQuestion],
    *,
    max_new_tokens: int,
    batch_size: int,
    num_workers: int = 0,
    condition: Condition = "trained",
    other: Mapping[Media, Media] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Asks questions, and yields a batch's answers as soon as they are there: lines for `inference.results`.

    A question that fails by itself, as one too long for the LLM, has an `error` beside an empty answer.

    Args:
        condition: blank_images shows black ones.
        other: what is shown in place of a picture, see `shuffled`.

    Raises:
        UserError: a picture can't be read.
    """
    ordered = adjacent(questions)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    pixels = _Pixels(batches, engine.processor, condition, other or {})
    loader = DataLoader(pixels, batch_size=None, num_workers=min(num_workers, len(batches)))
    known: dict[Media, list[Tensor]] = {}
    started = time.perf_counter()
    for batch, read in zip(batches, loader, strict=True):
        known = {shown: rows for shown, rows in known.items() if any(shown in own.shown for own in batch)}
        embeddings = iter(engine.embeddings([picture for own in read.values() for picture in own]))
        known |= {shown: [next(embeddings) for _ in own] for shown, own in read.items()}
        answers = _answers(engine, benchmark, batch, known, max_new_tokens)
        found = [_answer_line(own, answer) for own, answer in zip(batch, answers, strict=True)]
        seconds = round((time.perf_counter() - started) / len(batch), 4)
        yield [line | {"seconds": seconds} for line in found]
        started = time.perf_counter()


def conversation_of(question: Question, images: Sequence[Part], videos: Sequence[Sequence[Part]]) -> Conversation:
    """The dialogue that asks a question; `videos` are the pictures of each."""
    if question.dialogue is None:
        shown = [*images, *(picture for video in videos for picture in video)]
        return Conversation([Turn(spaced([*shown, question.prompt]))])
    pictures, frames = iter(images), iter(videos)
    return question.dialogue.showing(lambda file: next(frames) if file.video else [next(pictures)])


def _answers(
    engine: Engine,
    benchmark: Benchmark,
    batch: Sequence[StoredQuestion],
    known: Mapping[Media, list[Tensor]],
    most: int,
) -> list[Answer | int]:
    """For each question its answer, or the number of the likeliest of its choices."""
    conversations = [
        conversation_of(
            own.question,
            [known[shown][0] for shown in own.shown if not shown.frames],
            [known[shown] for shown in own.shown if shown.frames],
        )
        for own in batch
    ]
    found: list[Answer | int] = [0] * len(batch)
    ranked = [i for i, own in enumerate(batch) if benchmark.ranked(own.question)]
    if ranked:
        prompts = [engine.prompter.read(conversations[i]) for i in ranked]
        for i, best in zip(ranked, engine.rank(prompts, [batch[i].question.choices for i in ranked]), strict=True):
            found[i] = best[0]
    generated = [i for i in range(len(batch)) if i not in set(ranked)]
    answers = engine.answer([Request(conversations[i], most) for i in generated])
    for i, answer in zip(generated, answers, strict=True):
        found[i] = answer
    return found


def _answer_line(asked: StoredQuestion, answer: Answer | int) -> dict[str, Any]:
    if isinstance(answer, int):
        chosen = {"answer": asked.question.choices[answer], "finish": "stop", "new_tokens": 0, "choice": answer}
        return asked.echo() | chosen
    own = {"answer": str(answer), "finish": answer.finish, "new_tokens": answer.new_tokens}
    if answer.error is not None:
        if not isinstance(answer.error, UserError):
            raise RuntimeError(f"{asked.question.place}: {first_line(answer.error)}") from answer.error
        own["error"] = str(answer.error)
    return asked.echo() | own
