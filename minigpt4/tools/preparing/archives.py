"""Unpacks archives of pictures, and nothing of them outside the folder that is meant."""

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from tqdm import tqdm

from minigpt4.common.errors import UserError, first_line, writing
from minigpt4.common.wrong_files import what_is_wrong

MAX_FILES = 1_000_000  # of an archive
MAX_PADDING = 64 * 2**20  # bytes behind a tar's last file, of which a small compressed file may hold any number
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
_UNREADABLE = (NotImplementedError, RuntimeError)  # a ZIP's unknown compression, or its password


class _Member(NamedTuple):
    name: str
    size: int  # bytes
    kind: str  # file, folder, or what else it is
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, holds: str, folder: Path, max_bytes: int) -> int:
    """Unpacks the files of a ZIP or tar archive that lie where a file of this name lies.

    Every name and size is looked at before the first byte is written.

    Args:
        archive: also a compressed tar.
        holds: the file, such as filter_cap.json, whose folder within the archive becomes `folder`.
        folder: an empty folder.
        max_bytes: the most that all files may have together, once they are unpacked.

    Returns:
        How many files were written.

    Raises:
        UserError: it is not an archive, or a damaged one; a name leads elsewhere; there is a link, a device, more than
            may be; or no file is named `holds`.
    """
    try:
        with _members(archive) as members:
            files = _checked(archive, members(), max_bytes)
        root = _root(archive, files, holds)
        written = 0
        with _members(archive) as members, writing("--out", folder):
            for member in tqdm(members(), total=len(files), desc=archive.name, unit="file"):
                path = PurePosixPath(member.name)
                if member.kind == "file" and path.is_relative_to(root):
                    target = folder / path.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with member.open() as source, target.open("xb") as copy:
                        shutil.copyfileobj(source, copy)
                    written += 1
    except _DAMAGED as error:
        raise UserError(f"{archive}: is damaged or not complete: {first_line(error)}. Download it again.") from None
    except _UNREADABLE as error:
        raise UserError(f"{archive}: can't be unpacked: {first_line(error)}. Unpack it by other means.") from None
    return written


@contextmanager
def _members(archive: Path) -> Iterator[Callable[[], Iterator[_Member]]]:
    """What walks through an archive, in the order of its members."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield lambda: (_zipped(file, info) for info in file.infolist())
    elif archive.is_file() and tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield lambda: _walked(tar)
    elif not archive.is_file():
        raise UserError(f"ARCHIVE: '{archive}' is not a file. Name cc_sbu_align.zip, or the folder that was unpacked.")
    elif (wrong := what_is_wrong(archive)) and "archive" not in wrong:  # a damaged one must not be unpacked by hand
        raise UserError(f"ARCHIVE: '{archive}' {wrong}.")
    else:
        raise UserError(f"ARCHIVE: '{archive}' is not a ZIP or tar archive. Download it again, or name another file.")


def _walked(tar: tarfile.TarFile) -> Iterator[_Member]:
    """tarfile takes a damaged header for the end of the archive, and does not read a checksum that comes later."""
    for info in tar:
        yield _tarred(tar, info)
    for _ in range(MAX_PADDING // 2**20):
        block = cast(IO[bytes], tar.fileobj).read(2**20)
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"a header is damaged at byte {tar.offset}")
        if not block:
            return
    raise tarfile.ReadError(f"more than {MAX_PADDING / 2**20:.0f} MB of zeros follow the last file")


def _zipped(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(info.external_attr >> 16)  # of the system that made it; 0 if it did not say
    kind = "folder" if info.is_dir() else "file" if mode in (0, stat.S_IFREG) else "a link or device"
    return _Member(info.filename, info.file_size, kind, lambda: file.open(info))


def _tarred(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kind = "folder" if info.isdir() else "file" if info.isreg() else "a link or device"
    return _Member(info.name, info.size, kind, lambda: cast(IO[bytes], tar.extractfile(info)))


def _checked(archive: Path, members: Iterator[_Member], max_bytes: int) -> list[PurePosixPath]:
    """The names of the files, once all members were looked at."""
    files, total = dict[PurePosixPath, None](), 0
    for member in members:
        path = PurePosixPath(member.name)
        outside = path.is_absolute() or ".." in path.parts
        if outside or "\\" in member.name or ":" in member.name or "\0" in member.name:
            raise UserError(
                f"{archive}: '{member.name}' would be written outside the target folder. Nothing was unpacked; do not "
                "trust it."
            )
        if member.kind not in ("file", "folder"):
            raise UserError(f"{archive}: '{member.name}' is {member.kind}. Nothing was unpacked; do not trust it.")
        if member.kind == "file":
            if path in files:
                raise UserError(f"{archive}: holds '{member.name}' twice. Nothing was unpacked; download it again.")
            files[path] = None
            total += member.size
        if total > max_bytes or len(files) > MAX_FILES:
            raise UserError(
                f"{archive}: would unpack to more than {max_bytes / 1e9:g} GB or {MAX_FILES:,} files. Nothing was "
                "unpacked; set --max-gb higher if you trust it."
            )
    if clash := next((folder for path in files for folder in path.parents if folder in files), None):
        raise UserError(
            f"{archive}: holds '{clash}' as a file and as a folder. Nothing was unpacked; download it again."
        )
    return list(files)


def _root(archive: Path, files: list[PurePosixPath], holds: str) -> PurePosixPath:
    found = [path.parent for path in files if path.name == holds and "__MACOSX" not in path.parts]
    if len(found) != 1:
        raise UserError(f"{archive}: holds {len(found)} files named {holds}, not one. Name another archive.")
    return found[0]
