"""Files that are whole at any time."""

import errno
import os
import shutil
from pathlib import Path


def regular_file(path: Path) -> Path:
    """The file that a path names, links followed; it need not be there yet.

    Raises:
        OSError: it is a folder, a device or a pipe.
    """
    file = Path(os.path.realpath(path))
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file anew. Until that has succeeded, the old one stays; its permissions stay in any case.

    Raises:
        OSError: it can't be written; see also `regular_file`.
    """
    file = regular_file(path)
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_bytes(data)
        if file.exists():
            shutil.copymode(file, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def check_space(folder: Path, needed: int) -> None:
    """Checks that so many bytes can be written to a folder, which need not be there yet.

    Raises:
        OSError: there is less space; `errors.writing` makes a line of it.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"no space left: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
