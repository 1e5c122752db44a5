"""Checks every record of a data file: what `minigpt4 validate-data` reports."""

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minigpt4.config.schema import DatasetConfig
from minigpt4.conversation.conversation import Conversation
from minigpt4.conversation.prompter import Prompter
from minigpt4.datasets.formats.records.files import image_folder, load_pictures, read_records, record_id
from minigpt4.datasets.formats.records.parse import parse_record
from minigpt4.datasets.formats.records.record import RecordError
from minigpt4.processors.picture_file import open_image, thumbnail_url
from minigpt4.processors.video import open_video

SHOWN = 20  # samples on the page
_LISTED = 20  # records named of each problem
_THUMBNAIL = 224  # pixels
_BINS, _BAR = 12, 50  # of a histogram: rows, characters of the longest bar


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of conversations as the model lays them out, without a model.

    Attributes:
        name: of the tokenizer, for the report.
        limits: False if the config's limits are nobody's choice: then nothing is too long.
    """

    prompter: Prompter
    name: str
    limits: bool

    def problems(self, prompt: int, rest: int) -> list[RecordError]:
        """What is too long of so many tokens of the first prompt, and of all that follows it."""
        most, found = self.prompter.max_txt_len, []
        if not self.limits:
            return []
        if rest > most:
            found.append(RecordError("truncated", f"its answers have {rest} tokens, and model.max_txt_len is {most}"))
        if (tokens := prompt + min(rest, most)) > (window := self.prompter.window):
            found.append(RecordError("too long", f"it has {tokens} tokens, and the LLM reads {window} at once"))
        return found


@dataclass
class Sample:
    """What is known of a record once it was checked. Without a `conversation` it could not be understood."""

    id: str
    format: str = ""
    dropped: int = 0  # answers before the first question
    problems: list[RecordError] = field(default_factory=list)
    conversation: Conversation | None = None  # its pictures are None
    pictures: int = 0
    thumbnails: list[str] = field(default_factory=list)  # data: URLs, of the samples on the page
    tokens: tuple[int, int] = (0, 0)  # of the prompt, and of what follows


@dataclass
class Report:
    file: str
    counter: TokenCounter
    samples: list[Sample]

    def shown(self) -> list[Sample]:
        return [self.samples[i] for i in shown_of(len(self.samples))]

    def text(self) -> str:
        """What the terminal shows."""
        understood = [sample for sample in self.samples if sample.conversation]
        plain = sum(not sample.conversation.pictures for sample in understood if sample.conversation)
        lines = [
            f"{self.file}: {len(self.samples)} records ({plain} of text alone), "
            f"{sum(sample.pictures for sample in self.samples)} pictures"
        ]
        if formats := Counter(sample.format for sample in understood).most_common():
            lines.append("formats: " + "; ".join(f"{count} x {keys}" for keys, count in formats))
        if dropped := [sample.dropped for sample in understood if sample.dropped]:
            lines.append(f"left out: {sum(dropped)} answers before the first question, in {len(dropped)} records")
        if understood:
            limit = f" (training reads {self.counter.prompter.max_txt_len})" if self.counter.limits else ""
            lines += ["", f"tokens of whole samples, images included, as {self.counter.name} counts them"]
            lines += histogram([sum(sample.tokens) for sample in understood])
            lines += ["", f"tokens after the first question{limit}"]
            lines += histogram([sample.tokens[1] for sample in understood])
        return "\n".join([*lines, "", *self._problems()]) + "\n"

    def _problems(self) -> list[str]:
        found: dict[str, list[tuple[str, RecordError]]] = {}
        for sample in self.samples:
            for problem in sample.problems:
                found.setdefault(problem.kind, []).append((sample.id, problem))
        lines = []
        for kind, of in sorted(found.items(), key=lambda item: -len(item[1])):
            more = f", and {len(of) - _LISTED} more" if len(of) > _LISTED else ""
            lines.append(f"{len(of):8} x {kind}: {', '.join(name for name, _ in of[:_LISTED])}{more}")
            lines.append(f"{'':11}{of[0][0]}: {of[0][1].detail}")
        return lines or ["no problems"]


def shown_of(records: int) -> list[int]:
    """Which samples the page shows: the same ones each time."""
    return sorted(random.Random(0).sample(range(records), min(SHOWN, records)))


def histogram(values: list[int]) -> list[str]:
    """Bars of characters, one a line."""
    step = (max(values) - min(values)) // _BINS + 1
    edges = np.arange(min(values), max(values) + step + 1, step)
    counts, _ = np.histogram(values, bins=edges)
    bars = ["#" * -(-count * _BAR // max(counts)) for count in counts]
    return [f"{a:8} - {a + step - 1:<8}{n:8} {bar}" for a, bar, n in zip(edges, bars, counts, strict=False)]


def check_file(file: str, images: str | None, block: DatasetConfig, counter: TokenCounter) -> Report:
    """Checks all records; pictures are decoded in full, by several threads.

    Raises:
        UserError: the file can't be parsed.
    """
    records = read_records("FILE", file)
    folder, shown = image_folder(file, images or block.build_info.images), set(shown_of(len(records)))
    processor = block.text_processor.train.build() if block.text_processor.train.name else str
    check = partial(_check, processor=processor, folder=folder, n_frms=block.build_info.n_frms, shown=shown)
    samples = []
    with ThreadPoolExecutor() as pool:
        for sample in tqdm(pool.map(check, range(len(records)), records), total=len(records), unit="record"):
            if sample.conversation:  # not by the threads: tokenizers are not made for it
                prompt, rest = counter.prompter.turns(sample.conversation)
                sample.tokens = len(prompt), len(rest)
                sample.problems += counter.problems(*sample.tokens)
            samples.append(sample)
    return Report(file, counter, samples)


def _check(index: int, raw: Any, processor: Callable[[str], str], folder: Path, n_frms: int, shown: set[int]) -> Sample:
    sample = Sample(record_id(raw, index))
    try:
        record = parse_record(raw)
        sample.format, sample.dropped = record.format, record.dropped
        conversation = record.processed(processor)
        # what its pictures would take, if they can't be opened
        sample.conversation = conversation.showing(lambda file: [None] * (n_frms if file.video else 1))
        loaded = load_pictures(conversation, folder, open_image, partial(open_video, n_frms=n_frms))
        sample.conversation = loaded.showing(lambda _: [None])
        pictures = loaded.pictures
        sample.pictures = len(pictures)
        sample.thumbnails = [thumbnail_url(picture, _THUMBNAIL) for picture in pictures] if index in shown else []
    except RecordError as error:
        sample.problems.append(error)
    return sample
