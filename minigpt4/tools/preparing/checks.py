"""What is in shards of stage 1 and in the folder of stage 2, read as training reads it."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from tqdm import tqdm

from minigpt4.common.errors import UserError
from minigpt4.config.schema import BuildInfo
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.datasets.formats.align import CCSBUAlignDataset
from minigpt4.datasets.formats.shards import ShardedCaptionDataset, expand_shards
from minigpt4.datasets.validation import SHOWN, Sample
from minigpt4.processors.picture_file import open_image, thumbnail_url
from minigpt4.processors.text import BlipCaptionProcessor

_CAUSES = {  # what an error's message says: its cause in two words; the first that fits
    "no picture": "no picture",
    "no caption": "no caption",
    "nothing of the caption": "empty caption",
    "No such file": "missing picture",
    "picture": "unreadable picture",
    "is not JSON": "unreadable caption",
    "is not UTF-8": "unreadable caption",
    "no image_id": "no image_id",
    "instruction": "unreadable instruction",
}
# webdataset's message about the program that it reads an address or a pipe with: its arguments and its exit status
_PROGRAM_FAILED = re.compile(r"\(\(\[?'([^' ]+).*\): exit (-?\d+) \(read\).*")
_LISTED = 30  # causes
_NAMED = 5  # samples named of each cause
_THUMBNAIL = 224  # pixels


class _Pictures:
    """Stands in for an image processor: it reads pictures and keeps the last one."""

    def load(self, file: Path | BinaryIO, reduced: bool) -> Image.Image:
        return open_image(file)


@dataclass
class Problem:
    """One cause: how many samples have it, some of their names, and the first one's whole message."""

    count: int
    names: list[str]
    detail: str

    def add(self, other: "Problem") -> None:
        self.count += other.count
        self.names = (self.names + other.names)[:_NAMED]


@dataclass
class Checked:
    """What was found.

    Attributes:
        file: what was checked.
        samples: how many can be used.
        problems: {cause: of the samples that can't}.
        downloads: how many addresses there were, and how many of them came, as img2dataset counted.
        failures: of the other addresses, by img2dataset's message.
        page: samples to look at.
    """

    file: str
    shards: int = 0
    samples: int = 0
    problems: dict[str, Problem] = field(default_factory=dict)
    downloads: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    page: list[Sample] = field(default_factory=list)

    def problem(self, cause: str, name: str, detail: str) -> None:
        self._add(cause, Problem(1, [name], detail))

    def add(self, other: "Checked") -> None:
        self.shards += other.shards
        self.samples += other.samples
        self.downloads += other.downloads
        self.failures += other.failures
        self.page += other.page
        for cause, problem in other.problems.items():
            self._add(cause, problem)

    def _add(self, cause: str, problem: Problem) -> None:
        if cause in self.problems:
            self.problems[cause].add(problem)
        else:
            self.problems[cause] = problem

    def shown(self) -> list[Sample]:
        return self.page[:SHOWN]

    def text(self) -> str:
        """What the terminal shows."""
        shards = f" in {self.shards} shards" if self.shards else ""
        lines = [f"{self.file}: {self.samples} samples that training can use{shards}"]
        if count := self.downloads["count"]:
            got = self.downloads["successes"]
            lines += ["", f"downloads, as img2dataset counted: {got} of {count} addresses ({got / count:.1%})"]
            lines += [f"{number:8} x {cause}" for cause, number in self.failures.most_common(_LISTED)]
        lines.append("")
        for cause, problem in sorted(self.problems.items(), key=lambda item: -item[1].count):
            more = ", ..." if problem.count > len(problem.names) else ""
            lines += [f"{problem.count:8} x {cause}: {', '.join(problem.names)}{more}", f"{'':11}{problem.detail}"]
        return "\n".join(lines + ([] if self.problems else ["no problems"])) + "\n"


def check_shards(storage: str, info: BuildInfo, most: int | None = None) -> Checked:
    """Reads every sample of shards, decoding its picture, several shards at once.

    Args:
        storage: as `build_info.storage`: a folder, a brace list or a glob.
        most: samples read of each shard; None: all.

    Raises:
        UserError: a shard does not exist, or a folder holds none.
    """
    if Path(storage).is_dir() and not any(Path(storage).glob("*.tar")):
        raise UserError(
            f"SHARDS: the folder '{storage}' holds no shards (*.tar). Name the folder that img2dataset wrote to."
        )
    shards = expand_shards("SHARDS", storage)
    whole, each = Checked(storage), -(-SHOWN // len(shards))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda shard: _check_shard(shard, info, most, each), shards)
        for one in tqdm(found, total=len(shards), unit="shard"):
            whole.add(one)
    return whole


def _check_shard(shard: str, info: BuildInfo, most: int | None, shown: int) -> Checked:
    found = Checked(shard, shards=1)
    data = ShardedCaptionDataset("SHARDS", shard, info, _Pictures(), BlipCaptionProcessor(), reduced=False)
    _read(found, islice(data, most), shown)
    stats = Path(shard).with_name(f"{Path(shard).stem}_stats.json")
    if stats.is_file():
        _compare(found, stats, most is None)
    elif Path(shard).with_suffix(".parquet").is_file():
        found.problem("not finished", shard, "img2dataset has written no _stats.json for it. Start it again.")
    return found


def _compare(found: Checked, stats: Path, whole: bool) -> None:
    """Notes what img2dataset counted of a shard, and whether the shard holds as much."""
    try:
        counted = json.loads(stats.read_bytes())
        found.downloads.update({key: int(counted[key]) for key in ("count", "successes")})
        found.failures.update({cause: n for cause, n in counted["status_dict"].items() if cause != "success"})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found.problem("unreadable _stats.json", str(stats), f"it is not what img2dataset writes: {error!r}")
        return
    held = found.samples + sum(problem.count for problem in found.problems.values())
    if whole and held != (came := found.downloads["successes"]):
        found.problem("other number of samples", found.file, f"it holds {held}, and its _stats.json says {came}")


def check_align(folder: Path) -> Checked:
    """Reads every annotation of a folder with filter_cap.json and image/, decoding its picture.

    Raises:
        UserError: filter_cap.json is missing or malformed, or no picture is there.
    """
    data = CCSBUAlignDataset("FOLDER", str(folder), BuildInfo(), _Pictures(), None, reduced=False)
    found = Checked(str(folder))
    samples = ((f"annotation {i}", partial(data.__getitem__, i)) for i in range(len(data)))
    _read(found, tqdm(samples, total=len(data), unit="picture"), SHOWN)
    return found


def _read(found: Checked, samples: Iterable[tuple[str, Callable[[], dict[str, Any]]]], shown: int) -> None:
    """Reads samples, and notes those that can't be used with their cause."""
    for name, read in samples:
        try:
            conversation: Conversation = read()["conversation"]
        except UserError as error:
            text = str(error)
            if match := _PROGRAM_FAILED.fullmatch(text):
                text = f"it can't be read: {match[1]} ended with exit status {match[2]}"
            cause = next((cause for words, cause in _CAUSES.items() if words in text), "damaged shard")
            found.problem(cause, name, text)
            continue
        found.samples += 1
        if len(found.page) < shown:
            found.page.append(_sample(name, conversation))


def _sample(name: str, conversation: Conversation) -> Sample:
    """As the page shows it: pictures as thumbnails."""
    thumbnails = [thumbnail_url(picture, _THUMBNAIL) for picture in conversation.pictures]
    turns = [
        Turn([part if isinstance(part, str) else None for part in turn.question], turn.answer)
        for turn in conversation.turns
    ]
    return Sample(name, conversation=Conversation(turns), pictures=len(thumbnails), thumbnails=thumbnails)
