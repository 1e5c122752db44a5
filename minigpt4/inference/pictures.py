"""What a visitor shows: pictures and videos, how they are kept, and how they travel in JSON."""

import base64
import io
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from minigpt4.common.errors import UserError
from minigpt4.config.schema import PreprocessConfig
from minigpt4.processors.picture_file import PixelBudget, open_upright, opened
from minigpt4.processors.video import open_video

_PNG = "data:image/png;base64,"
_FROM_URLS = str.maketrans("-_", "+/")  # base64url writes these

Reader = Callable[..., list[Image.Image]]


def in_this_process(opener: Reader, *args: Any) -> list[Image.Image]:
    """Calls what opens a picture or a video, in this process; `serve.picture_decoding` in one that can be ended."""
    return opener(*args)


def _read(reader: Reader, opener: Reader, *args: Any, budget: PixelBudget) -> list[Image.Image]:
    images = reader(opener, *args, copy(budget))  # of which another process may have its own copy
    for image in images:
        budget.take(*image.size)
    return images


@dataclass(eq=False)
class Picture:
    """A picture in a conversation. The embedding [rows, D] may be dropped at any time: it is made again.

    `file` is what it was read from, unless that is larger than its pixels, as one with many pages is.
    """

    image: Image.Image
    embedding: Tensor | None = None
    file: bytes | None = None

    def __post_init__(self) -> None:
        if self.file is not None and len(self.file) > 3 * self.image.width * self.image.height:
            self.file = None

    def encoded(self) -> tuple[bytes, str]:
        """A file of the very same pixels, and its format: its own, because a photo is ten times as large as a PNG."""
        if self.file is not None:
            with opened(io.BytesIO(self.file)) as image:
                return self.file, str(image.format).lower().replace("mpo", "jpeg")  # a JPEG with more behind it
        file = io.BytesIO()
        self.image.save(file, "png")
        return file.getvalue(), "png"

    def to_url(self) -> str:
        """A `data:` URL without loss: the same pixels give the same embedding."""
        data, kind = self.encoded()
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    @classmethod
    def from_file(cls, file: Path, budget: PixelBudget | None = None, reader: Reader = in_this_process) -> "Picture":
        """Reads a picture file.

        Args:
            budget: that of a conversation with no pictures yet, unless given.
            reader: opens it, here or in another process.

        Raises:
            UserError: it can't be read, or there is no room for it.
        """
        (image,) = _read(reader, open_upright, file, budget=budget or PixelBudget())
        try:
            with file.open("rb") as opened_again:  # more than its pixels it does not keep
                return cls(image, file=opened_again.read(3 * image.width * image.height + 1))
        except OSError as error:
            raise UserError(f"{file} can't be read: {error.strerror}. Use another.") from None

    @classmethod
    def from_url(cls, url: Any, budget: PixelBudget | None = None, reader: Reader = in_this_process) -> "Picture":
        """Reads a `data:` URL of any picture format and media type, or the base64 alone; as `from_file`."""
        data = data_of(url)
        (image,) = _read(reader, open_upright, io.BytesIO(data), budget=budget or PixelBudget())
        return cls(image, file=data)


def data_of(url: Any) -> bytes:
    """What a `data:` URL of base64 holds, or the base64 alone.

    Either alphabet of base64 will do, with padding or without, in lines or in one.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(url, str) or not re.match(r"data:[^,]*;base64,|[\w+/=\s-]*$", url, re.IGNORECASE):
        raise UserError(f"a picture is not a data: URL but {str(url)[:40]!r}. Write {_PNG}...")
    try:
        text = "".join(url[url.find(",") + 1 :].split()).rstrip("=")  # MIME's has lines
        return base64.b64decode(text.translate(_FROM_URLS) + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:  # binascii's, or not even ASCII
        raise UserError(f"a picture's data: URL can't be read: {error}. Write {_PNG}...") from None


@dataclass(frozen=True)
class Video:
    """A video file, shown as `frames` pictures (see `open_video`)."""

    path: Path
    frames: int = PreprocessConfig.n_frms

    def pictures(self, budget: PixelBudget | None = None, reader: Reader = in_this_process) -> list[Picture]:
        """Reads the frames; a shorter video has fewer. As `Picture.from_file`."""
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist. Name a video file.")
        images = _read(reader, open_video, self.path, self.frames, budget=budget or PixelBudget())
        return [Picture(image) for image in images]


MessagePart = str | Image.Image | Picture | Video  # part of a message


def pictures_of(part: Image.Image | Picture | Video, budget: PixelBudget) -> Sequence[Picture]:
    """The pictures of one part of a message, in order; and takes them from the budget.

    Raises:
        UserError: one is too large, the budget is used up, or a video can't be read.
    """
    if isinstance(part, Video):
        return part.pictures(budget)
    picture = part if isinstance(part, Picture) else Picture(part.convert("RGB"))
    budget.take(*picture.image.size)
    return [picture]
