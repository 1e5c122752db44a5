"""Files that are whole at any time."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt4.common.errors import UserError, make_folder


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


@contextmanager
def new_folder(key: str, folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `folder` when the block has ended without an error.

    Raises:
        UserError: there is something at `folder` already, or it can't be made. `key` is the argument that names it.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{key}: '{folder}' is there already. Name a new folder, or delete it first.")
    make_folder(key, folder.parent)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    make_folder(key, part)
    try:
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
