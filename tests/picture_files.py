"""Picture and video files that tests show."""

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def file_of(image: Image.Image, kind: str = "png", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def bomb(width: int, height: int) -> io.BytesIO:
    """A PNG that says it is large, and holds nothing behind its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", b""))
    ]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def write_video(file: Path, colors: Iterable[tuple[int, int, int]], width: int = 64, height: int = 48) -> Path:
    """A video of a frame in each color (blue, green, red). Skips the test where videos can't be read."""
    cv2, _ = pytest.importorskip("cv2"), pytest.importorskip("decord")
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 10, (width, height))
    for color in colors:
        writer.write(np.full((height, width, 3), color, np.uint8))
    writer.release()
    return file


def jpeg_of_scans(count: int, between: bytes = b"") -> bytes:
    """A progressive JPEG of 40 x 30 pixels, whose last scan is repeated; `between` stands in front of that."""
    data = file_of(Image.new("RGB", (40, 30), (200, 100, 50)), "jpeg", progressive=True).getvalue()
    last = data.rindex(b"\xff\xda")
    scans = data.count(b"\xff\xda")
    return data[:last] + between + data[last:-2] * (count - scans + 1) + data[-2:]
