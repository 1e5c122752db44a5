"""Picture files: which are read, within which limits, and how they become RGB. No torch: `serve.picture_decoding`
starts a process with this module for a stranger's files.
"""

import base64
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from math import inf
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.limits import MAX_IMAGE_PIXELS, MAX_LARGEST_IMAGES, MAX_SCANS, MAX_SIDE

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow hands some others to other programs
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a JPEG: neither a stuffed byte nor a restart
_START_OF_SCAN, _END = 0xDA, 0xD9
_BARE = (0x01, 0xD8)  # markers without a length


class PixelBudget:
    """What a conversation's pictures may be: of pixels, each has a limit and all together have; so has their number.

    Args:
        max_pixels: of each; all together may have `MAX_LARGEST_IMAGES` times as many.
        shown: pictures that the conversation has already.
        most: how many pictures the model can read at once.
    """

    def __init__(self, max_pixels: int = MAX_IMAGE_PIXELS, shown: Iterable[Image.Image] = (), most: float = inf):
        self._each = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))  # from there on, Pillow itself refuses
        self._all = MAX_LARGEST_IMAGES * max_pixels
        sizes = [image.width * image.height for image in shown]
        self._left, self._count, self._most = self._all - sum(sizes), len(sizes), most

    def expect(self, count: int) -> None:
        """Checks the number of pictures that are to come, before the first is opened.

        Raises:
            UserError: they are more than the model can read.
        """
        if (whole := self._count + count) > self._most:
            raise UserError(
                f"the conversation would have {whole} pictures; the model reads {int(self._most)} at most. Show fewer."
            )

    def take(self, width: int, height: int, count: int = 1) -> None:
        """Takes pictures of a size from the budget, before they are decoded.

        Raises:
            UserError: one is too large, they are too many, or there is not enough left.
        """
        if width * height > self._each:
            raise self.too_large()
        self.expect(count)
        self._count += count
        self._left -= width * height * count
        if self._left < 0:
            raise UserError(
                f"with it, the conversation's pictures have more than {self._all / 1e6:g} megapixels together. "
                "Show fewer, or make them smaller."
            )

    def too_large(self) -> UserError:
        """What is said of a picture over the limit of each."""
        return UserError(f"the picture has more than {self._each / 1e6:g} megapixels. Make it smaller.")


def open_image(file: Path | BinaryIO, budget: PixelBudget | None = None, upright: bool = False) -> Image.Image:
    """Reads a picture, of several in a file the first, as RGB.

    Args:
        budget: from which the picture takes its pixels. Without one, Pillow's own limit counts.
        upright: turn it the way up that its camera meant.

    Raises:
        UserError: it is not a picture, it is damaged, or over a limit; the last is known before it is decoded.
    """
    with opened(file, budget) as image:
        return rgb(ImageOps.exif_transpose(image) if upright else image)


def open_upright(file: Path | BinaryIO, budget: PixelBudget, side: int | None = None) -> list[Image.Image]:
    """A list of one picture, as the eval processor is to see it, for readers such as `here`.

    Args:
        side: make it a square of so many pixels already, as the processor would.
    """
    image = open_image(file, budget, upright=True)
    seen = squared(image, side) if side else image
    seen.info["size"] = image.size  # that it had
    return [seen]


def squared(image: Image.Image, side: int) -> Image.Image:
    """The picture as a square. By Pillow: other resizing gives other pixels than the weights were trained with."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def thumbnail_url(image: Image.Image, side: int) -> str:
    """A `data:` URL of a small JPEG, for pages that need no other file; of at most `side` pixels each way."""
    image.thumbnail((side, side))
    data = BytesIO()
    image.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


@contextmanager
def opened(file: Path | BinaryIO, budget: PixelBudget | None = None) -> Iterator[Image.Image]:
    """Opens a picture file, and checks what its header says; what the block decodes is read then.

    Raises as `open_image`, from within the block too.
    """
    where = f"{file}: " if isinstance(file, Path) else ""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if budget is not None:
                budget.take(*image.size)
            _check(image)
            yield image
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    except Exception as error:  # Pillow's readers raise many kinds
        if budget is not None and isinstance(error, Image.DecompressionBombError):
            raise UserError(f"{where}{budget.too_large()}") from None
        known = f"it is not one of {', '.join(FORMATS)}" if isinstance(error, Image.UnidentifiedImageError) else None
        reason = known or getattr(error, "strerror", None) or first_line(error).rstrip(".")
        name = str(file) if isinstance(file, Path) else "this"
        raise UserError(f"{name} can't be read as a picture: {reason}. Use another, or fix it.") from None


def _check(image: Image.Image) -> None:
    """Refuses what takes far more time or memory to decode than its number of pixels lets expect."""
    if (side := max(image.size)) > MAX_SIDE:
        raise UserError(f"the picture's longer side has {side} pixels; {MAX_SIDE} are the most. Make it smaller.")
    if isinstance(image, JpegImageFile) and image.fp:
        image.fp.seek(0)
        if _scans(image.fp.read()) > MAX_SCANS:
            raise UserError(f"the picture is a JPEG of more than {MAX_SCANS} scans. Save it again.")


def _scans(jpeg: bytes) -> int:
    """How many scans a JPEG has, each of which goes over all its pixels; counts just past the limit."""
    at, scans = 0, 0
    while scans <= MAX_SCANS and (found := _MARKER.search(jpeg, at)):
        marker, at = found[0][1], found.end()
        if marker == _END:
            break
        scans += marker == _START_OF_SCAN
        if marker not in _BARE:
            at += int.from_bytes(jpeg[at : at + 2], "big")  # what stands inside is not ours: a thumbnail has scans too
    return scans


def rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB.

    Raises:
        ValueError: its brightness has 32 bits, of which nothing says what is white.
    """
    image.load()
    if image.mode in ("I", "F"):
        raise ValueError("its brightness has 32 bits, and nothing says what is white; save it with 8 or 16")
    if image.mode.startswith("I;16"):  # Pillow would take all above 255 for white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies what is RGB
