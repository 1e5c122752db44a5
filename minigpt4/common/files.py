"""Files that are whole at any time."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from minigpt4.common.errors import make_folder, writing


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
    """Replaces what a file holds. Until that has succeeded, the old one stays; its permissions stay in any case.

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


@contextmanager
def whole_files(key: str, file: Path) -> Iterator[Path]:
    """Gives a path of the same name in a folder of its own; all files there move to where `file` lies, if all is well.

    Args:
        key: the option that names the file.

    Raises:
        UserError: it can't be written.
    """
    make_folder(key, file.parent)
    with ExitStack() as stack:
        with writing(key, file):
            file = regular_file(file)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent)))
        yield folder / file.name
        with writing(key, file):
            for own in sorted(folder.iterdir(), key=lambda path: path.name == file.name):  # that one last
                os.replace(own, file.with_name(own.name))
