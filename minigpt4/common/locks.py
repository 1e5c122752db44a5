"""One process at a time writes to a folder or a file: locks that the kernel frees with the process, however it ends."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from errno import ENOLCK, ENOTSUP, EOPNOTSUPP
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt4.common.distributed import all_gather, is_main
from minigpt4.common.errors import Problems, UserError, make_folder, writing
from minigpt4.common.files import regular_file

logger = logging.getLogger(__name__)

_LOCK, _HOLDER = ".lock", ".lock.json"
_TIMEOUT = 10.0  # seconds: workers of a killed rank may hold its lock until they notice
_RESTART_TIMEOUT = 120.0  # for ranks that torchrun starts again: NFS frees a dead machine's locks after 90


@contextmanager
def locked(key: str, folder: Path, timeout: float = _TIMEOUT) -> Iterator[None]:
    """Makes a folder and holds its lock, on rank 0 for all ranks. All ranks must call it.

    Args:
        key: the config key that names the folder.
        timeout: seconds to wait for another process to free it.

    Raises:
        UserError: on all ranks: another process holds it, or it can't be written.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        timeout = max(timeout, _RESTART_TIMEOUT)
    lock, problems = FileLock(folder / _LOCK), Problems()
    if is_main():
        problems.attempt(_acquire_folder, lock, key, folder, timeout)
    Problems(all_gather(list(problems))).raise_all()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_file(key: str, path: Path) -> Iterator[None]:
    """Holds the lock of a file, which lies beside it: `.NAME.lock`.

    Args:
        key: the option that names the file.

    Raises:
        UserError: another process holds it.
        OSError: it can't be written; see also `regular_file`.
    """
    with _locked_beside(key, path, regular_file(path)):  # its links have the same lock
        yield


@contextmanager
def _locked_beside(key: str, path: Path, place: Path) -> Iterator[None]:
    lock = FileLock(place.with_name(f".{place.name}{_LOCK}"))
    _acquire(lock, key, path, 0, lambda: f"another run writes to '{path}'. Wait until it ends, or name another.")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new_folder(key: str, folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `folder` when the block has ended without an error.

    Raises:
        UserError: there is something at `folder` already, another process fills it, or it can't be made. `key` is the
            argument that names it.
    """
    make_folder(key, folder.parent)
    part = folder.with_name(f".{folder.name}.part")
    with ExitStack() as held:
        with writing(key, folder):
            held.enter_context(_locked_beside(key, folder, folder))
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{key}: '{folder}' is there already. Name a new folder, or delete it first.")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        make_folder(key, part)
        try:
            yield part
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _acquire_folder(lock: FileLock, key: str, folder: Path, timeout: float) -> None:
    make_folder(key, folder)
    cure = f"Wait until it ends, end it, or set {key} to another folder."
    with writing(key, folder / _LOCK):
        _acquire(lock, key, folder, timeout, lambda: f"'{folder}' is in use by {_holder(folder)}. {cure}")
        own = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        (folder / _HOLDER).write_text(json.dumps(own) + "\n")


def _acquire(lock: FileLock, key: str, path: Path, timeout: float, in_use: Callable[[], str]) -> None:
    """Takes the lock of `path`; on a file system without locks it only warns."""
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise UserError(f"{key}: {in_use()}") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in (ENOLCK, ENOTSUP, EOPNOTSUPP):
            raise
        logger.warning("%s: the file system of '%s' has no locks: see that no other run writes there", key, path)


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / _HOLDER).read_text())
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just started
        return "another process"
