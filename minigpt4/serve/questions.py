"""What `minigpt4 predict` is asked: records of a file, or one question about each of many pictures."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Turn
from minigpt4.datasets.formats.records.files import image_folder, read_records, record_id
from minigpt4.datasets.formats.records.record import RecordError
from minigpt4.inference.chat import turns_of
from minigpt4.inference.pictures import Picture, Video
from minigpt4.processors.picture_file import FORMATS, PixelBudget


@dataclass(frozen=True)
class Question:
    """Words about pictures or a video, or about nothing to see; none of the files was opened yet.

    Attributes:
        images: file names or data: URLs.
        folder: where file names begin.
        error: why this can't be asked.
    """

    id: str | int
    text: str = ""
    images: Sequence[str] = ()
    video: str = ""
    folder: Path = Path()
    error: str = ""

    def echo(self) -> dict[str, Any]:
        """What an answer repeats of its question. Pictures in data: URLs leave a checksum."""
        images = [f"data:{_checksum(name)}" if _is_data(name) else name for name in self.images]
        asked = {"images": images, "video": self.video, "text": self.text}
        return {"id": self.id} | {key: value for key, value in asked.items() if value}

    def turns(self, budget: PixelBudget, n_frms: int) -> list[Turn]:
        """The dialogue that asks it: pictures, then the video's, then the words.

        Args:
            budget: what there is room for.
            n_frms: pictures taken of a video.

        Raises:
            UserError: it can't be asked, or a file not be read.
        """
        if self.error:
            raise UserError(self.error)
        budget.expect(len(self.images) + bool(self.video))
        pictures = [
            Picture.from_url(name, budget) if _is_data(name) else Picture.from_file(self.folder / name, budget)
            for name in self.images
        ]
        pictures += Video(self.folder / self.video, n_frms).pictures(budget) if self.video else []
        return turns_of([], [*pictures, self.text])


def questions_about(paths: Sequence[str], text: str) -> list[Question]:
    """The same question about each picture, and about each picture of a folder (not of those below it).

    Raises:
        UserError: a folder holds no picture, a picture is named twice, or the text is none.
    """
    _check_text("--text:", text)
    Image.init()  # to know all suffixes
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS}
    images: list[str] = []
    for path in paths:
        if Path(path).is_dir():
            inside = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in suffixes and file.is_file())
            if not inside:
                raise UserError(f"--image: the folder '{path}' holds no picture. Name one that does.")
            images += map(str, inside)
        else:
            images.append(path)
    return _distinct([Question(image, text, [image]) for image in images], "--image", "Name it once.")


def read_questions(file: str, text: str | None, folder: str | None) -> list[Question]:
    """The questions of a JSON, JSON lines or Parquet file.

    Args:
        text: what is asked where a record has no text of its own.
        folder: where file names begin, see `image_folder`.

    Raises:
        UserError: the file can't be parsed, or an id stands twice. What is wrong with one record it says itself.
    """
    start, questions = image_folder(file, folder), []
    for index, raw in enumerate(read_records("--input", file)):
        if isinstance(raw, RecordError):  # answers are few, and each is waited for
            raise UserError(raw.detail)
        own = raw.get("id") if isinstance(raw, dict) else None
        name = own if isinstance(own, int | str) and own != "" else record_id(raw, index)
        try:
            questions.append(_question(raw, name, text, start))
        except UserError as error:
            questions.append(Question(name, error=str(error)))
    return _distinct(questions, "--input", "Give each its own id.")


def _question(raw: Any, name: str | int, text: str | None, folder: Path) -> Question:
    if not isinstance(raw, dict):
        raise UserError('the record is not an object. Write {"image": ..., "text": ...}.')
    images: list[Any] = []
    for key in ("image", "images"):
        value = raw.get(key) or []
        images += value if isinstance(value, list) else [value]
    text, video = raw.get("text") or text, raw.get("video") or ""
    if not all(isinstance(value, str) for value in (*images, video)):
        raise UserError('"image" and "video" must be file names, "images" a list of them.')
    if not isinstance(text, str):
        raise UserError('"text" is missing or no string. Write it, or set --text.')
    _check_text('"text"', text)
    return Question(name, text, images, video, folder)


def _check_text(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half a pair, and a shell any byte
        raise UserError(f"{key} holds {text[error.start]!r}, which is not a character. Take it out.") from None


def _is_data(name: str) -> bool:
    return name[:5].lower() == "data:"


def _checksum(url: str) -> str:
    return hashlib.sha256(url.encode(errors="backslashreplace")).hexdigest()[:16]


def _distinct(questions: list[Question], source: str, cure: str) -> list[Question]:
    name, count = Counter(question.id for question in questions).most_common(1)[0]
    if count > 1:
        raise UserError(f"{source}: '{name}' stands there {count} times. {cure}")
    return questions
