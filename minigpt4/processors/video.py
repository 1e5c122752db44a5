"""Videos as pictures."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from minigpt4.common.errors import UserError, first_line


def open_video(file: Path | BinaryIO, n_frms: int) -> list[Image.Image]:
    """Reads `n_frms` frames spread evenly over a video, the first and the last among them; all, if it has fewer.

    Raises:
        UserError: decord is missing, or it can't read the file.
    """
    try:
        from decord import DECORDError, VideoReader
    except ImportError as error:
        raise UserError(f"{file}: videos need decord. Install it: pip install decord (on x86-64)") from error
    try:
        reader = VideoReader(str(file) if isinstance(file, Path) else file, num_threads=1)
        wanted = np.linspace(0, len(reader) - 1, min(n_frms, len(reader))).round().astype(int)
        frames = reader.get_batch(wanted).asnumpy()
    except (DECORDError, RuntimeError, IndexError) as error:
        name = f"{file} can't" if isinstance(file, Path) else "can't"
        raise UserError(
            f"{name} be read as a video: {first_line(error)}. Remove it and its records, or mend it."
        ) from None
    return [Image.fromarray(frame) for frame in frames]
