"""Data sets whose annotations say what may be asked about a picture: what MiniGPT-v2's 22 have in common."""

import json
import logging
import os
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from minigpt4.common.errors import UserError, prefixed
from minigpt4.config.schema import BuildInfo
from minigpt4.conversation.conversation import Conversation, Part, Turn
from minigpt4.processors.picture_file import opened

logger = logging.getLogger(__name__)

_DAMAGED = (LookupError, TypeError, ValueError, AttributeError)  # of an annotation that is not as its format has it


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
    picture is not there are left out, counted and named.

    Args:
        key: the config key that names the annotations, for errors.
        storage: the annotations: a file, a list of them, or a folder.
        info: `images` is the folder of the pictures; where they are not in it, its folder `train` is looked into.
        instructions: of which one is drawn; `{}` is the question's place.
        reduced: as in training: draw, and decode JPEGs at reduced size; else the first of everything is taken, and the
            likeliest answer.

    Raises:
        UserError: an annotation file is missing or is not JSON, or no picture is there.
    """

    shows = True  # pictures

    def __init__(
        self,
        key: str,
        storage: Any,
        info: BuildInfo,
        vis_processor: Any,
        text_processor: Any,
        reduced: bool,
        instructions: Sequence[str] = (),
    ):
        self.key, self.info, self.training = key, info, reduced
        self.vis_processor, self.text_processor = vis_processor, text_processor
        self.files = [Path(file) for file in ([storage] if isinstance(storage, str) else storage)]
        self.instructions = list(instructions) or ["{}"]
        self.rows = self.read()
        if not self.rows:
            raise UserError(f"{key}: '{storage}' holds no annotations that are used. Name another file.")
        if self.shows:
            self._leave_out_what_has_no_picture()

    def read(self) -> list[Any]:
        """The annotations that are used, in order: the entries of all files, which are lists, or lists below the key
        "annotations" or "data".
        """
        return [entry for file in self.files for entry in listed(self.key, file)]

    @abstractmethod
    def picture(self, row: Any) -> str:
        """The file of an annotation's picture, below `images`."""

    @abstractmethod
    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        """What may be asked about a picture of this width and height, and answered."""

    @property
    def pictures(self) -> Path:
        """The folder of the pictures."""
        return Path(self.info.images or ".")

    def name(self, row: Any) -> Any:
        """The name of an annotation's sample."""
        return Path(self.picture(row)).stem

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        with self._readable(index):
            file = self.file(row)
            conversation = self.conversation(row, file)
            name = self.name(row)
        picture = [] if file is None else [self.vis_processor.load(file, self.training)]
        conversation = conversation.showing(lambda _: picture)
        return {"conversation": conversation, "image_id": name, "files": [] if file is None else [str(file)]}

    def conversation(self, row: Any, file: Path | None) -> Conversation:
        """What one reading of a sample asks and answers; its picture is yet a file."""
        asked = self.asked(row, _size(file) if file else (0, 0))
        if self.training:
            question, instruction = random.choice(asked.questions), random.choice(self.instructions)
            (answer,) = random.choices(list(asked.answers), weights=list(asked.answers.values()))
        else:
            question, instruction = asked.questions[0], self.instructions[0]
            answer = max(asked.answers, key=lambda text: asked.answers[text])
        return Conversation([Turn(self.question(instruction, question, file), answer)], kind="instruction")

    def question(self, instruction: str, question: str, file: Path | None) -> list[Part]:
        """The parts of a question: a space stands before and behind its words, as the original has it."""
        return [file, f" {instruction.format(question)} "] if file else [instruction.format(question)]

    def variants(self, index: int) -> dict[tuple[str, str], float]:
        """{(question without its picture, answer): how likely it is} of all that may be drawn of a sample."""
        row = self.rows[index]
        with self._readable(index):
            asked = self.asked(row, _size(file) if (file := self.file(row)) else (0, 0))
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
        inside = folder / "train" / name  # the original looks into this folder alone
        return inside if not _is_there(folder / name) and _is_there(inside) else folder / name

    def _leave_out_what_has_no_picture(self) -> None:
        missing: list[Path] = []
        rows = []
        for row in self.rows:
            try:
                file = self.file(row)
            except _DAMAGED:
                file = None  # it is named when it is drawn
            if file is None or _is_there(file):
                rows.append(row)
            else:
                missing.append(file)
        _names_in.cache_clear()
        if missing and not rows:
            raise UserError(
                f"{self.key}: none of its {len(missing)} pictures is there, such as '{missing[0]}'. Set "
                f"{self.key.rpartition('.')[0]}.images to their folder."
            )
        if missing:
            names = ", ".join(str(file) for file in missing[:3])
            logger.warning("%s: %d of %d samples are left out, for their pictures are not there: %s%s",
                           self.key, len(missing), len(self.rows), names, ", ..." if missing[3:] else "")  # fmt: skip
        self.rows = rows

    @contextmanager
    def _readable(self, index: int) -> Iterator[None]:
        """Around what reads an annotation: one that is not as its format has it is a `UserError` that names it."""
        place = f"{', '.join(map(str, self.files))}: sample {index}"
        try:
            with prefixed(f"{place}: "):
                yield
        except _DAMAGED as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else f"it is not as this format has it ({error})"
            raise UserError(f"{place}: {what}. Mend or remove it.") from None


def listed(key: str, file: Path) -> list[Any]:
    """The entries of a JSON file: a list, or what stands below "annotations" or "data".

    Raises:
        UserError: it is missing, or holds no such list.
    """
    found = load_json(key, file)
    for name in ("annotations", "data"):
        found = found[name] if isinstance(found, dict) and name in found else found
    if not isinstance(found, list):
        raise UserError(f"{key}: '{file}' holds no list of annotations. Name a file as LAVIS or the data set has it.")
    return found


def load_json(key: str, file: Path) -> Any:
    """Raises `UserError` where it is missing or not JSON."""
    if not file.is_file():
        raise UserError(f"{key}: '{file}' is not a file. Set it to the annotations; see docs/minigptv2.md.")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: '{file}' is not JSON: {error}. Download it again.") from None


def box_text(box: Sequence[float], size: tuple[int, int]) -> str:
    """`{<x1><y1><x2><y2>}` of a box [x, y, width, height] in pixels, in hundredths of the picture's width and height.

    They are cut off, not rounded, and a box that leaves the picture is not clipped, as the original has it.
    """
    (x, y, w, h), (width, height) = box, size
    corners = (x / width, y / height, (x + w) / width, (y + h) / height)
    return "{" + "".join(f"<{int(value * 100)}>" for value in corners) + "}"


def _size(file: Path) -> tuple[int, int]:
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
