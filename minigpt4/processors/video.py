"""Videos as pictures."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

from minigpt4.common.errors import UserError, first_line
from minigpt4.processors.picture_file import PixelBudget


def open_video(file: Path | BinaryIO, n_frms: int, budget: PixelBudget | None = None) -> list[Image.Image]:
    """Reads `n_frms` frames of a video, the first of each of as many equal parts, as LAVIS does; all, if it has fewer.

    Args:
        budget: what there is room for; the frames take their part before they are read.

    Raises:
        UserError: decord is missing, it can't read the file, or the frames are over a limit.
    """
    where = f"{file}: " if isinstance(file, Path) else ""
    if n_frms < 1:
        raise UserError(f"frames: {n_frms} is out of range. Set it to 1 or more.")
    try:
        from decord import DECORDError, VideoReader
    except ImportError as error:
        raise UserError(
            f"{where}reading a video needs decord. Install it: pip install 'minigpt4[video]' (on x86-64)"
        ) from error
    try:
        # more threads would decode more frames ahead
        reader = VideoReader(str(file) if isinstance(file, Path) else file, num_threads=1)
        count = min(n_frms, len(reader))
        if budget is not None:
            height, width, _ = reader[0].shape  # all have the size of the first
            budget.take(width, height, count)
        frames = reader.get_batch([part * len(reader) // count for part in range(count)])
        return [Image.fromarray(frame) for frame in frames.asnumpy()]
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    except (DECORDError, RuntimeError, IndexError, OSError) as error:
        name = str(file) if isinstance(file, Path) else "this"
        reason = first_line(error).rstrip(".")
        raise UserError(f"{name} can't be read as a video: {reason}. Use another, such as an MP4 with H.264.") from None
