"""Checksums of a checkpoint's files: damage on disk is reported, where it would be loaded in silence otherwise."""

import json
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.common.files import replace_file

_CHECKSUMS = "checksums.json"  # {file's name in the folder: {"crc32": hexadecimal, "size": bytes}}
_BLOCK = 2**22


def write_checksums(folder: Path) -> None:
    """Notes the size and the CRC-32 of each file in a folder and below it, in `checksums.json`.

    CRC-32 finds damage at several times the speed of SHA-256. It would not find a forgery; against one there is that
    nothing in a checkpoint can run code.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _CHECKSUMS)
    with ThreadPoolExecutor() as pool:
        sums = pool.map(_crc32, files)
        found = {
            str(file.relative_to(folder)): {"crc32": own, "size": file.stat().st_size}
            for file, own in zip(files, sums, strict=True)
        }
    _write(folder, found)


def drop_checksums(folder: Path) -> None:
    """Before a file in the folder changes: a crash leaves a checkpoint that is not checked, not one that is refused."""
    (folder / _CHECKSUMS).unlink(missing_ok=True)


def rename_checked(file: Path, name: str) -> None:
    """Gives a file another name, in the folder's checksums too."""
    known = _read(file.parent)
    drop_checksums(file.parent)
    file.rename(file.with_name(name))
    if known is not None:
        _write(file.parent, {name if own == file.name else own: noted for own, noted in known.items()})


def check_checksums(folder: Path, names: Collection[str] | None = None) -> None:
    """Compares files, all unless named, with the folder's checksums; where it has none, nothing is checked.

    A file that has not changed since is not read again by the same process.

    Raises:
        UserError: a file is damaged or missing, or the checksums themselves are damaged.
    """
    known = _read(folder)
    if known is None:
        return
    checked = {name: noted for name, noted in known.items() if names is None or name in names}
    with ThreadPoolExecutor() as pool:
        for problem in pool.map(lambda item: _problem(folder / item[0], item[1]), checked.items()):
            if problem:
                raise UserError(f"{problem}. Use another checkpoint.")


def _problem(file: Path, noted: dict[str, Any]) -> str | None:
    try:
        status = file.stat()
        if not file.is_file():
            return f"'{file}' can't be read: it is not a regular file"
        if status.st_size != noted["size"]:
            return f"'{file}' can't be read as it was written: it has {status.st_size} bytes of {noted['size']}"
        if _crc32_once(file, status.st_size, status.st_mtime_ns) != noted["crc32"]:
            return f"'{file}' can't be read as it was written: it is damaged, its checksum differs"
    except (OSError, ValueError) as error:  # a name that no file can have
        return f"{str(file.with_name(file.name[:80]))!r} can't be read: {getattr(error, 'strerror', None) or error}"
    return None


def _write(folder: Path, known: dict[str, dict[str, Any]]) -> None:
    replace_file(folder / _CHECKSUMS, (json.dumps(known, indent=2) + "\n").encode())


def _read(folder: Path) -> dict[str, dict[str, Any]] | None:
    """A folder's checksums; None where it has none. Damaged ones are refused."""
    file = folder / _CHECKSUMS
    try:
        known = json.loads(file.read_bytes())
        # a stranger's name might lead out of the folder, to what can be read without end
        inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in known)
        if inside and all(noted.keys() == {"crc32", "size"} for noted in known.values()):
            return known
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise UserError(f"'{file}' can't be read: it is damaged. Delete it to load the checkpoint unchecked.")


@lru_cache(maxsize=10_000)
def _crc32_once(file: Path, size: int, changed: int) -> str:
    return _crc32(file)


def _crc32(file: Path) -> str:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"
