"""What a visitor shows: pictures and videos, how they are kept, and how they travel in JSON."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.limits import MAX_IMAGE_PIXELS, MAX_LARGEST_IMAGES
from minigpt4.processors.image import rgb

_PNG = "data:image/png;base64,"
_FROM_URLS = str.maketrans("-_", "+/")  # base64url writes these
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow hands some others to other programs


class Room:
    """The pixels that a conversation's pictures may have: each has a limit, and all together so many times as many.

    Args:
        max_pixels: of each.
        shown: pictures that it has already.
    """

    def __init__(self, max_pixels: int = MAX_IMAGE_PIXELS, shown: "Iterable[Picture]" = ()):
        self._each = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))  # from there on, Pillow itself refuses
        self._all = MAX_LARGEST_IMAGES * max_pixels
        self._left = self._all - sum(picture.image.width * picture.image.height for picture in shown)

    def take(self, width: int, height: int, count: int = 1) -> None:
        """Takes the room of pictures of a size, before they are decoded.

        Raises:
            UserError: one is too large, or there is not enough left.
        """
        if width * height > self._each:
            raise self.too_large()
        self._left -= width * height * count
        if self._left < 0:
            raise UserError(
                f"with it, the conversation's pictures have more than {self._all / 1e6:g} megapixels together. "
                "Show fewer, or make them smaller."
            )

    def too_large(self) -> UserError:
        """What is said of a picture over the limit of each."""
        return UserError(f"the picture has more than {self._each / 1e6:g} megapixels. Make it smaller.")


def open_image(file: Path | BinaryIO, max_pixels: int | Room = MAX_IMAGE_PIXELS) -> Image.Image:
    """Reads a picture that anybody may have sent, as RGB and the way up that its camera meant.

    Args:
        max_pixels: or the room that there is, of which it takes its part.

    Raises:
        UserError: it is no picture, is broken, or has too many pixels: its header tells, it is not decoded.
    """
    room = max_pixels if isinstance(max_pixels, Room) else Room(max_pixels)
    try:
        with Image.open(file, formats=FORMATS) as image:
            room.take(*image.size)
            return rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        raise UserError("this can't be read as a picture. Use a JPEG or PNG.") from None
    except Image.DecompressionBombError:
        raise room.too_large() from None
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"the picture can't be read: {reason}. Use another.") from None


@dataclass(eq=False)
class Picture:
    """A picture in a conversation. The embedding [1, rows, D] may be dropped at any time: it is made again.

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
            with Image.open(io.BytesIO(self.file), formats=FORMATS) as image:
                return self.file, str(image.format).lower().replace("mpo", "jpeg")  # a JPEG with more behind it
        file = io.BytesIO()
        self.image.save(file, "png")
        return file.getvalue(), "png"

    def to_url(self) -> str:
        """A `data:` URL without loss: the same pixels give the same embedding."""
        data, kind = self.encoded()
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    @classmethod
    def from_file(cls, file: Path, max_pixels: int | Room = MAX_IMAGE_PIXELS) -> "Picture":
        """Reads a picture file.

        Raises:
            UserError: as `open_image`.
        """
        try:
            with file.open("rb") as opened:
                image = open_image(opened, max_pixels)
                opened.seek(0)
                return cls(image, file=opened.read(3 * image.width * image.height + 1))  # more it does not keep
        except OSError as error:
            raise UserError(f"{file}: the picture can't be read: {error.strerror}. Use another.") from None
        except UserError as error:
            raise UserError(f"{file}: {error}") from None

    @classmethod
    def from_url(cls, url: Any, max_pixels: int | Room = MAX_IMAGE_PIXELS) -> "Picture":
        """Reads a `data:` URL of any picture format and media type, or the base64 alone.

        Either alphabet of base64 will do, with padding or without, in lines or in one.

        Raises:
            UserError: it is none, or as `open_image`.
        """
        if not isinstance(url, str) or not re.match(r"data:[^,]*;base64,|[\w+/=\s-]*$", url, re.IGNORECASE):
            raise UserError(f"a picture is not a data: URL but {str(url)[:40]!r}. Write {_PNG}...")
        try:
            text = "".join(url[url.find(",") + 1 :].split()).rstrip("=")  # MIME's has lines
            padded = text.translate(_FROM_URLS) + "=" * (-len(text) % 4)
            data = base64.b64decode(padded, validate=True)
        except ValueError as error:  # binascii's, or not even ASCII
            raise UserError(f"a picture's data: URL can't be read: {error}. Write {_PNG}...") from None
        return cls(open_image(io.BytesIO(data), max_pixels), file=data)


@dataclass(frozen=True)
class Video:
    """A video file, shown as `frames` pictures: the middle of each of as many equal parts."""

    path: Path
    frames: int = 8

    def pictures(self, room: Room | None = None) -> list[Picture]:
        """Reads the frames; a shorter video has fewer.

        Args:
            room: that of a conversation with no pictures yet, unless given.

        Raises:
            UserError: decord is missing, the file is no video, or its frames have too many pixels.
        """
        if self.frames < 1:
            raise UserError(f"frames: {self.frames} is out of range. Set it to 1 or more.")
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist.")
        try:
            import decord
        except ImportError as error:
            raise UserError(
                f"{self.path}: reading a video needs decord. Install it: pip install 'minigpt4[video]'"
            ) from error
        try:
            # a frame tells the size of all; more threads would decode more of them ahead
            height, width, _ = decord.VideoReader(str(self.path), num_threads=1)[0].shape
            reader = decord.VideoReader(str(self.path))
            count = min(self.frames, len(reader))
            (room or Room()).take(width, height, count)
            middles = ((np.arange(count) + 0.5) * len(reader) / count).astype(int)
            return [Picture(Image.fromarray(frame)) for frame in reader.get_batch(middles).asnumpy()]
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        except (decord.DECORDError, RuntimeError, OSError) as error:
            raise UserError(
                f"{self.path} can't be read as a video: {first_line(error).rstrip('.')}. Try an MP4 with H.264."
            ) from None


Part = str | Image.Image | Picture | Video


def pictures_of(part: Image.Image | Picture | Video, room: Room) -> Sequence[Picture]:
    """The pictures of one part of a message, in order; they take their room.

    Raises:
        UserError: one is too large, there is not enough room, or a video can't be read.
    """
    if isinstance(part, Video):
        return part.pictures(room)
    picture = part if isinstance(part, Picture) else Picture(part.convert("RGB"))
    room.take(*picture.image.size)
    return [picture]
