"""Data sets whose annotations say what may be asked about a picture: what MiniGPT-v2's 22 have in common."""

import logging
import os
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from minigpt4.common.errors import UserError, prefixed
from minigpt4.config.schema import BuildInfo
from minigpt4.conversation.conversation import Conversation, Part, Turn
from minigpt4.datasets.formats.values import listed, shown, wrong
from minigpt4.processors.picture_file import opened

logger = logging.getLogger(__name__)

# what reading an annotation raises whose format checks less than those here
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
_FARTHEST = 1e9  # pixels: no picture is as large

Size = Callable[[], tuple[int, int]]  # reads a picture's width and height; only boxes need them


@dataclass(frozen=True)
class Asked:
    """What may be asked about a picture, and answered: one of each is drawn when the sample is read.

    Attributes:
        questions: what an instruction of the data set holds in its braces; all are as likely.
        answers: {text: how likely, in parts of their sum}.
    """

    questions: Sequence[str]
    answers: Mapping[str, float]


class AnnotatedDataset(Dataset):
    """Samples {conversation, image_id, files} of one question about one picture, or about none.

    Subclasses say what their files hold. An annotation that can't be used is an error when it is drawn; those whose
    picture is missing are left out, counted and named.

    Args:
        key: the config key that names the annotations, for errors.
        storage: the annotations: a file, a list of them, or a folder.
        info: `images` is the folder of the pictures; where they are not in it, its folder `train` is looked into.
        instructions: of which one is drawn; `{}` is the question's place.
        reduced: as in training: draw, and decode JPEGs at reduced size; else the first of everything is taken, and the
            likeliest answer.
        split: "train" or "val"; of files that hold several splits, only this one is used.

    Attributes:
        missing: the picture files that are not there.

    Raises:
        UserError: an annotation file is missing or is not JSON, no picture is there, or an instruction has no place for
            the question.
    """

    shows = True  # pictures
    asks = True  # about a text that an instruction has to hold

    def __init__(
        self,
        key: str,
        storage: Any,
        info: BuildInfo,
        vis_processor: Any,
        text_processor: Any,
        reduced: bool,
        instructions: Sequence[str] = (),
        split: str = "train",
    ):
        self.key, self.info, self.training, self.split = key, info, reduced, split
        self.vis_processor, self.text_processor = vis_processor, text_processor
        self.files = [Path(file) for file in ([storage] if isinstance(storage, str) else storage)]
        self.instructions = list(instructions) or ["{}"]
        for text in self.instructions:
            if not _takes_question(text, self.asks):
                block = key.partition(".build_info")[0]
                raise UserError(f"{block}.instructions: '{text}' has no place for the question. Write {{}} there.")
        try:
            rows = self.read()
        except _DAMAGED as error:
            raise UserError(f"{key}: '{storage}' does not have the format of this data set ({error!r}).") from None
        self.rows = [row for row in rows if self._is_used(row)]
        self.missing: list[Path] = []
        if not self.rows:
            name = {"train": "training", "val": "validation"}[split]
            raise UserError(f"{key}: '{storage}' has no annotation of the {name} split. Name another file.")
        if self.shows:
            self._leave_out_what_has_no_picture()

    def read(self) -> list[Any]:
        """All annotations, damaged ones too, in order: the entries of all files, which are lists, or lists below the
        key "annotations" or "data".
        """
        return [entry for file in self.files for entry in listed(self.key, file)]

    def used(self, row: Any) -> bool:
        """Whether an annotation is of the split; raises `UserError` where it is too damaged to tell."""
        return True

    @abstractmethod
    def picture(self, row: Any) -> str:
        """The file of an annotation's picture, below `images`."""

    @abstractmethod
    def asked(self, row: Any, size: Size) -> Asked:
        """What may be asked about a picture, and answered."""

    @property
    def pictures(self) -> Path:
        """The folder of the pictures."""
        return Path(self.info.images or ".")

    @property
    def folder(self) -> Path:
        """The storage of a format whose annotations are a folder."""
        if len(self.files) > 1:
            raise UserError(f"{self.key}: expected one folder, found {len(self.files)} paths. Name one.")
        return self.files[0]

    def name(self, row: Any) -> Any:
        """The name of an annotation's sample."""
        return Path(self.picture(row)).stem

    def place(self, row: Any, index: int) -> str:
        """Where an annotation is, for errors."""
        return f"{', '.join(map(str, self.files))}: sample {index}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        with self._readable(row, index):
            file = self.file(row)
            conversation = self.conversation(row, file)
            name = self.name(row)
        picture = [] if file is None else [self.vis_processor.load(file, self.training)]
        conversation = conversation.showing(lambda _: picture)
        return {"conversation": conversation, "image_id": name, "files": [] if file is None else [str(file)]}

    def conversation(self, row: Any, file: Path | None) -> Conversation:
        """What one reading of a sample asks and answers; its picture is yet a file."""
        asked = self.asked(row, partial(_size, file))
        # an empty answer can't be learned
        answers = {text: weight for text, weight in asked.answers.items() if text.strip()} or dict(asked.answers)
        if self.training:
            question, instruction = random.choice(asked.questions), random.choice(self.instructions)
            (answer,) = random.choices(list(answers), weights=list(answers.values()))
        else:
            question, instruction = asked.questions[0], self.instructions[0]
            answer = max(answers, key=lambda text: answers[text])
        return Conversation([Turn(self.question(instruction, question, file), answer)], kind="instruction")

    def question(self, instruction: str, question: str, file: Path | None) -> list[Part]:
        """The parts of a question: a space stands before and behind its words, as the original has it."""
        return [file, f" {instruction.format(question)} "] if file else [instruction.format(question)]

    def variants(self, index: int) -> dict[tuple[str, str], float]:
        """{(question without its picture, answer): how likely it is} of all that the original may draw of a sample.

        Here an empty answer is drawn only where there is no other.
        """
        row = self.rows[index]
        with self._readable(row, index):
            file = self.file(row)
            asked = self.asked(row, partial(_size, file))
            found: Counter[tuple[str, str]] = Counter()
            for instruction in self.instructions:
                for question in asked.questions:
                    said = Turn(self.question(instruction, question, file)).words
                    for answer, weight in asked.answers.items():
                        found[said, answer] += weight  # type: ignore[assignment]
        whole = sum(found.values())
        return {variant: weight / whole for variant, weight in found.items()}

    def file(self, row: Any) -> Path | None:
        """The picture's file, whether it is there or not; None of a format without pictures."""
        if not self.shows:
            return None
        folder, name = self.pictures, self.picture(row)
        # files may write a folder before a name that is not there on disk; the original looks into `train` alone
        places = [below / file for below in (folder, folder / "train") for file in (name, Path(name).name)]
        return next((file for file in places if _is_there(file)), places[0])

    def _leave_out_what_has_no_picture(self) -> None:
        rows = []
        for row in self.rows:
            try:
                file = self.file(row)
            except (UserError, *_DAMAGED):
                file = None  # it is named when it is drawn
            if file is None or _is_there(file):
                rows.append(row)
            else:
                self.missing.append(file)
        _names_in.cache_clear()
        if self.missing and not rows:
            raise UserError(
                f"{self.key}: none of its {len(self.missing)} pictures is there, such as '{self.missing[0]}'. Set "
                f"{self.key.rpartition('.')[0]}.images to their folder."
            )
        if self.missing:
            lost, names = len(self.missing), ", ".join(map(str, self.missing[:3])) + ", ..." * (len(self.missing) > 3)
            logger.warning("%s: %d of %d samples (%.3g %%) are skipped: their picture files are missing: %s",
                           self.key, lost, len(self.rows), 100 * lost / len(self.rows), names)  # fmt: skip
        self.rows = rows

    def _is_used(self, row: Any) -> bool:
        try:
            return self.used(row)
        except (UserError, *_DAMAGED):
            return True  # it is named when it is drawn

    @contextmanager
    def _readable(self, row: Any, index: int) -> Iterator[None]:
        """Around what reads an annotation: a damaged one is a `UserError` that names it."""
        with prefixed(f"{self.place(row, index)}: "):
            try:
                self.used(row)
                yield
            except _DAMAGED as error:
                raise wrong(
                    f"key {error} is missing" if isinstance(error, KeyError) else f"it is damaged ({error!r})"
                ) from None


def box_text(box: Any, size: tuple[int, int]) -> str:
    """`{<x1><y1><x2><y2>}` of a box [x, y, width, height] in pixels, in hundredths of the picture's width and height.

    They are cut off, not rounded, and a box that leaves the picture in part is not clipped, as the original has it.

    Raises:
        UserError: it is not four numbers, has no area, or is outside the picture.
    """
    if not _is_box(box):
        raise wrong(f"key 'bbox' is {shown(box)}; expected four numbers: x, y, width and height in pixels")
    (x, y, w, h), (width, height) = box, size
    if w <= 0 or h <= 0 or x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise wrong(f"key 'bbox' is {shown(box)}, which has no area within the picture of {width} x {height} pixels")
    corners = (x / width, y / height, (x + w) / width, (y + h) / height)
    return "{" + "".join(f"<{int(value * 100)}>" for value in corners) + "}"


def _is_box(box: Any) -> bool:
    four = isinstance(box, list | tuple) and len(box) == 4 and not any(isinstance(side, bool) for side in box)
    return four and all(isinstance(side, int | float) and -_FARTHEST < side < _FARTHEST for side in box)


def area_of(box: Any) -> float:
    """Width times height of a box as `box_text` takes it; 0 of anything else."""
    return box[2] * box[3] if _is_box(box) else 0


def _takes_question(instruction: str, shown: bool) -> bool:
    """Whether a question can be put into an instruction; `shown`: it must also be seen there."""
    try:
        return instruction.format("a") != instruction.format("b") or not shown
    except (LookupError, ValueError):  # of other braces
        return False


def _size(file: Path | None) -> tuple[int, int]:
    assert file is not None, "a text has no size"
    with opened(file) as image:
        return image.size


def _is_there(file: Path) -> bool:
    return file.name in _names_in(file.parent)


@cache
def _names_in(folder: Path) -> frozenset[str]:
    """Looking into a folder once is far faster than asking for each of a million files."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()
