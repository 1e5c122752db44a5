"""Downloads that continue where they were interrupted, are checked, and have their name only once they are whole."""

import hashlib
import logging
import re
import time
from collections.abc import Mapping
from errno import EDQUOT, EFBIG, ENOSPC
from fnmatch import fnmatch
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from tqdm import tqdm

from minigpt4.common.errors import UserError, first_line, make_folder, writing
from minigpt4.common.files import check_space
from minigpt4.common.locks import locked_file
from minigpt4.common.wrong_files import what_is_wrong, wrong_file
from minigpt4.models.published import Weights

logger = logging.getLogger(__name__)

HUB = "https://huggingface.co"
_WEIGHTS = "model*.safetensors", "pytorch_model*.bin"  # the first that a repository has
_BLOCK = 2**20
_PATIENCE = 30.0  # seconds without a byte
_ATTEMPTS = 5  # in a row that bring no byte


def download_file(weights: Weights, file: Path, mirror: str | None) -> None:
    """Downloads a file from the first of its URLs that gives it; one that is there is checked only.

    Args:
        mirror: address below which the file, or what the hub has, is looked for first.

    Raises:
        UserError: no URL gives it, or what they give is something else.
    """
    make_folder("--target", file.parent)
    digest = weights.sha256.get(weights.file)
    if file.exists():
        if wrong := wrong_file([file]):
            raise UserError(f"{wrong}. After that, call this again.")
        _check_digest(file, digest)
        return
    part = file.with_name(f"{file.name}.part")
    refusals = []
    with writing("--target", file), locked_file("--target", file):
        for url in _addresses(weights, mirror):
            try:
                logger.info("%s: from %s", weights.name, url)
                _complete(_direct(url), part)
                _check_content(part, digest)
            except (OSError, HTTPException, UserError) as error:
                if _is_full(error):
                    raise
                refusals.append(_refusal(url, error))
                logger.warning("%s", refusals[-1])
            else:
                part.rename(file)
                break
    if not file.exists():
        continues = ": it continues where it was interrupted" if part.exists() else ""
        raise UserError(
            f"{'; '.join(refusals)}. Try again later{continues}. Or get {file.name} by other means, such as a browser, "
            f"and put it at {file}"
        )


def _addresses(weights: Weights, mirror: str | None) -> list[str]:
    """Where a file may be, the mirror's places first."""
    if mirror is None:
        return list(weights.urls)
    base = mirror.rstrip("/")
    hub = [base + urlparse(url).path for url in weights.urls if url.startswith(HUB)]
    return [f"{base}/{weights.file}", *hub, *weights.urls]


def _direct(url: str) -> str:
    """The address of the file itself, where a URL is that of Google Drive's page about it."""
    if found := re.match(r"https://drive\.google\.com/file/d/([\w-]+)", url):
        return f"https://drive.usercontent.google.com/download?id={found[1]}&export=download&confirm=t"
    return url


def _complete(url: str, part: Path) -> None:
    """Downloads what a file lacks; a connection that breaks off is made again."""
    attempts = 0
    while True:
        before = _size(part)
        try:
            if _append(url, part):
                return
            reason = "the connection was closed"
        except HTTPError:
            raise
        except (OSError, HTTPException) as error:
            if _size(part) == 0 or _is_full(error):  # nothing was reached
                raise
            reason = first_line(error)
        attempts = 0 if _size(part) > before else attempts + 1
        time.sleep(attempts)
        if attempts == _ATTEMPTS:
            raise OSError(f"it was interrupted at {_size(part)} bytes: {reason}")


def _append(url: str, part: Path) -> bool:
    """Asks for what a file lacks, and writes what comes; whether that was all."""
    have = _size(part)
    headers = {"User-Agent": "minigpt4"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(Request(url, headers=headers), timeout=_PATIENCE)
    except HTTPError as error:
        if error.code == 416 and have:  # there is no more
            return True
        raise
    with answer:
        begin = have if answer.status == 206 else 0  # a server may start from the beginning
        length = answer.headers.get("Content-Length")
        total = begin + int(length) if length else None
        check_space(part.parent, total - have if total else 0)
        with (
            part.open("ab") as stream,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True) as bar,
        ):
            if not begin:
                _skip(answer, part)
            while block := answer.read(_BLOCK):
                bar.update(stream.write(block))
    return total is None or _size(part) >= total


def _skip(answer: HTTPResponse, part: Path) -> None:
    """Reads what a file has already; another file, such as a web page in its place, must not replace that."""
    with part.open("rb") as stream:
        while some := stream.read(_BLOCK):
            got = answer.read(len(some))
            if not some.startswith(got):
                raise UserError(
                    f"what it gives does not begin as '{part}' does: it may be a web page. If that file is the wrong "
                    "one, delete it"
                )
            if len(got) < len(some):
                raise OSError("the connection was closed")


def _is_full(error: BaseException) -> bool:
    """Whether it is this machine that can't take more, which no other server helps against."""
    return isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG)


def _check_content(part: Path, digest: str | None) -> None:
    """Refuses, and deletes, what is not the file."""
    if not (wrong := what_is_wrong(part) or _wrong_digest(part, digest)):
        return
    part.unlink()
    raise UserError(f"what it gives {wrong.partition('. ')[0]}")  # behind that is what to do with a file that is kept


def _check_digest(file: Path, digest: str | None) -> None:
    if wrong := _wrong_digest(file, digest):
        raise UserError(f"'{file}' {wrong}. Delete it and download it again.")


def _wrong_digest(file: Path, digest: str | None) -> str | None:
    if digest is None:
        logger.info("%s: no sha256 is published, so that it was not compared", file)
    elif (own := sha256_of(file)) != digest:
        return f"has the sha256 {own}, published is {digest}"
    return None


def sha256_of(file: Path) -> str:
    """The digest of a file in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _refusal(url: str, error: Exception) -> str:
    codes = {401: "login required", 403: "access denied", 404: "not found", 429: "too many requests"}
    reason = first_line(error)
    if isinstance(error, HTTPError):
        reason = f"{codes.get(error.code, error.reason)} (HTTP {error.code})"
    elif "drive.google" in url and "web page" in reason:
        reason = "Google Drive gives a web page in place of the file, as it does after too many downloads of it"
    return f"{url}: {reason}"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def download_repository(weights: Weights, folder: Path | None, mirror: str | None) -> None:
    """Downloads what we read of a repository of the hub, to a folder or to the hub's cache, and checks each sha256.

    Args:
        mirror: address of a server that answers as the hub does; None: the hub, or HF_ENDPOINT.

    Raises:
        UserError: the download failed; with the reason and the cure.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page, endpoint = f"{HUB}/{weights.hub}", mirror or constants.ENDPOINT
    target = folder or Path(constants.HF_HUB_CACHE)
    with writing("--target", target):
        try:
            found = HfApi(endpoint=endpoint).model_info(weights.hub, files_metadata=True).siblings or []
            digests = {own.rfilename: own.lfs.sha256 if own.lfs else None for own in found}
            sizes = {own.rfilename: own.size or 0 for own in found}
            names = files_to_read(sizes)
            check_space(target, sum(sizes[name] for name in names))
            place = snapshot_download(weights.hub, allow_patterns=names, local_dir=folder, endpoint=endpoint)
        except UserError:
            raise
        except GatedRepoError:
            raise UserError(
                f"{page}: its makers ask you to accept their licence. Do so on that page, then log in: hf auth login "
                "(or set HF_TOKEN), and call this again."
            ) from None
        except RepositoryNotFoundError:
            raise UserError(
                f"{page}: there is no such model on {endpoint}, or it is private. Check the name; for a private one "
                "log in: hf auth login (or set HF_TOKEN)."
            ) from None
        except Exception as error:  # connections fail in many ways
            if _is_full(error):
                raise
            raise UserError(
                f"{page}: download from {endpoint} failed ({first_line(error)}). Call this again later: it continues "
                "where it was interrupted; or set --mirror (or HF_ENDPOINT) to a server that this machine reaches; or "
                "call it with --target DIR on another machine, and copy DIR."
            ) from None
    for name in names:
        if digest := weights.sha256.get(name) or digests[name]:
            _check_digest(Path(place) / name, digest)


def files_to_read(names: Mapping[str, int]) -> list[str]:
    """Of the files of a repository those that a model is loaded from: weights in one format, and all small ones."""
    from minigpt4.models.pretrained import SMALL_FILES

    kinds = ([name for name in names if fnmatch(name, kind)] for kind in _WEIGHTS)
    weights = next(filter(None, kinds), [])
    small = [name for name in names if any(fnmatch(name, kind) for kind in SMALL_FILES)]
    return [name for name in (*weights, *small) if "/" not in name]
