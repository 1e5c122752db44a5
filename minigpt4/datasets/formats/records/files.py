"""Files of records, and the pictures that these name."""

import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

from minigpt4.common.errors import UserError, first_line
from minigpt4.conversation.conversation import Conversation
from minigpt4.datasets.formats.records.record import File, RecordError, short

_Read = Callable[[Path | BinaryIO], Any]


def read_records(key: str, storage: str) -> list[Any]:
    """Reads the records of a JSON, JSON lines or Parquet file, and looks at none of them.

    For a line that can't be read stands the `RecordError` that says so.

    Raises:
        UserError: the file is missing, can't be parsed, or is empty. `key` is the config key or argument that names it.
    """
    file = Path(storage)
    if not file.is_file():
        raise UserError(f"{key}: '{storage}' is not a file. Set it to a JSON, JSON lines or Parquet file of records.")
    records = _read_parquet(file) if file.suffix == ".parquet" else _read_json(file)
    if not records:
        raise UserError(f"{file}: holds no records. Write a list of them, or one a line.")
    return records


def _read_json(file: Path) -> list[Any]:
    """A list, or else one record a line, of which some, but not the first, may be damaged."""
    data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        return _loads(str(file), data)
    records: list[Any] = []
    for number, line in enumerate(data.split(b"\n"), 1):  # not splitlines: JSON's strings may hold other line breaks
        try:
            records += [_loads(f"{file}: line {number}", line)] if line.strip() else []
        except UserError as error:
            if not records:  # it is hardly a file of lines
                raise
            records.append(RecordError("unreadable line", str(error)))
    return records


def _loads(where: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: {error}. Write it again in that encoding.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}. Write a list of records, or one record a line.") from None


def _read_parquet(file: Path) -> list[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{file}: needs pyarrow. Install it: pip install pyarrow") from error
    try:
        return pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not Parquet: {first_line(error)}. Write it again, or name another file.") from None


def record_id(raw: Any, index: int) -> str:
    """A record's own id; without one its place in the file, counted from 0."""
    own = raw.get("id") if isinstance(raw, dict) else None
    if not isinstance(own, str | int) or own == "":
        return f"#{index}"
    return str(own).encode(errors="backslashreplace").decode()  # so that it can be written


def image_folder(file: str | Path, images: str | None) -> Path:
    """Where file names of a record begin: `images`, else the folder image/ beside the file, else the file's own."""
    beside = Path(file).parent / "image"
    return Path(images) if images else beside if beside.is_dir() else Path(file).parent


def load_pictures(conversation: Conversation, folder: Path, image: _Read, video: _Read) -> Conversation:
    """Reads the pictures and videos of a record's conversation.

    Args:
        folder: where file names begin.
        image: reads a picture.
        video: reads a list of pictures.

    Raises:
        RecordError: a file is missing or can't be read.
    """

    def pictures_of(file: File) -> list[Any]:
        if file.video:
            return _load(file.name, folder, "unreadable video", video)
        return [_load(file.name, folder, "unreadable image", image)]

    return conversation.showing(pictures_of)


def _load(name: str, folder: Path, kind: str, read: _Read) -> Any:
    """Reads a file of the folder, or what a data: URL holds."""
    try:
        if name.startswith("data:"):
            with urlopen(name) as data:
                return read(BytesIO(data.read()))
        return read(_find(name, folder))
    except RecordError:
        raise
    except UserError as error:
        raise RecordError(kind, str(error)) from None
    except Exception as error:  # noqa: B902 readers raise many kinds
        raise RecordError(kind, f"{short(name)}: {first_line(error)}") from None


def _find(name: str, folder: Path) -> Path:
    if name.startswith(("http://", "https://")):
        raise RecordError("missing file", f"{short(name)} is not on this machine. Download it, and name the file")
    file = folder / (url2pathname(urlsplit(name).path) if name.startswith("file://") else name)
    if file.is_file():
        return file
    if re.match(r"[A-Za-z]:[\\/]|\\\\", name):
        raise RecordError(
            "missing file", f"{short(name)} is a path of another machine. Write it relative to build_info.images"
        )
    if (written := folder / name.replace("\\", "/")).is_file():  # on Windows
        return written
    raise RecordError("missing file", f"{short(str(file))} does not exist")
