"""What people have where weights should be: a pointer, a web page, half a file, an archive."""

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

_AGAIN = "Delete it and download it again"
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
_HEADER = 100_000_000  # bytes: safetensors itself reads no longer one
_TEXT = 100_000  # bytes: longer texts are not error messages


def what_is_wrong(file: Path) -> str | None:
    """What a file is, and the cure, as the end of a sentence: "is empty. Download it again".

    It recognises by its first bytes what is neither weights nor a tokenizer, and what is truncated.

    Returns:
        None where nothing is found: the file may be sound, or its reader knows better what is wrong.
    """
    try:
        return _what_is_wrong(file) if file.is_file() else None
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _what_is_wrong(file: Path) -> str | None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(512)
    text = head.lstrip().lower()
    if size == 0:
        return f"is empty. {_AGAIN}"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file that it stands for. Run `git lfs pull` in its folder"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return (
            "is a web page, not the file. Download the file itself (on the Hugging Face hub a link with /resolve/, "
            "not /blob/)"
        )
    if head.startswith(b"GGUF"):
        return "is a GGUF file of llama.cpp. Use the same weights in the format of safetensors or PyTorch"
    archive = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None)
    if archive or head[257:262] == b"ustar":
        return f"is a {archive or 'tar'} archive. Unpack it and use the file that is in it"
    if head.startswith(b"PK\3\4"):
        return _zip(file)
    return _safetensors(file, size, head) or _message(file, size)


def wrong_file(files: Iterable[Path]) -> str | None:
    """Of the first of these files that is something else, its name and what it is."""
    return next((f"'{file}' {wrong}" for file in files if (wrong := what_is_wrong(file))), None)


def _zip(file: Path) -> str | None:
    if not zipfile.is_zipfile(file):
        return f"is truncated (download incomplete): the end of its zip archive is missing. {_AGAIN}"
    try:
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/data.pkl") for name in archive.namelist()):  # torch.save's
                return None
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return f"is a damaged zip archive. {_AGAIN}"
    return "is a zip archive. Unpack it and use the file that is in it"


def _safetensors(file: Path, size: int, head: bytes) -> str | None:
    """Its header follows a length of eight bytes and ends with where the last tensor does."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > _HEADER:
        return None
    with file.open("rb") as stream:
        header = stream.read(8 + length)[8:]
    if len(header) < length:
        return f"is truncated (download incomplete) within its header. {_AGAIN}"
    try:
        ends = [tensor["data_offsets"][1] for name, tensor in json.loads(header).items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, RecursionError):  # its reader says what is wrong
        return None
    return f"is truncated (download incomplete): it has {size} bytes of {whole}. {_AGAIN}" if size < whole else None


def _message(file: Path, size: int) -> str | None:
    if size > _TEXT or file.suffix == ".json":
        return None
    try:
        text = file.read_text("utf-8").strip()
    except UnicodeDecodeError:
        return None
    if not text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable():
        return None
    kind = "JSON" if text.startswith("{") else "text"
    return f"holds {kind}, perhaps a server's error message: {' '.join(text.split())[:60]!r}. {_AGAIN}"
