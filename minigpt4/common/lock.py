"""A folder that one run writes to, and others stay away from meanwhile."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ENOLCK, ENOSYS, ENOTSUP, EOPNOTSUPP
from logging import getLogger
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt4.common.dist_utils import all_gather, is_main
from minigpt4.common.errors import UserError, make_folder

logger = getLogger(__name__)

_NAME = ".lock"
_HOLDER = ".lock_holder"  # who has it: Windows lets nobody read a locked file
_WAIT = 5.0  # seconds for a run that is just ending
_NO_LOCKS = (ENOLCK, ENOSYS, ENOTSUP, EOPNOTSUPP)


@contextmanager
def locked(key: str, folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs. The lock is free again however this process ends.

    All ranks must enter it; the first one holds the lock.

    Args:
        key: the config key that names the folder.

    Raises:
        UserError: another run has the folder, or it can't be written to.
    """
    with ExitStack() as held:
        problem = ""
        if is_main():
            try:
                held.enter_context(_held(key, folder))
            except UserError as error:
                problem = str(error)
        if problem := all_gather([problem])[0]:
            raise UserError(problem)
        yield


@contextmanager
def _held(key: str, folder: Path) -> Iterator[None]:
    make_folder(key, folder)
    lock, holder = FileLock(folder / _NAME), folder / _HOLDER
    try:
        lock.acquire(timeout=_WAIT)
    except Timeout:
        raise UserError(
            f"{key}: {_name_of(holder)} writes to '{folder}'. Wait for its end, end it, or set another folder."
        ) from None
    except (OSError, NotImplementedError) as error:
        number = getattr(error, "errno", ENOSYS)
        if number not in _NO_LOCKS:
            raise UserError(
                f"{key}: '{folder}' can't be written to ({os.strerror(number)}). Set another folder."
            ) from None
        logger.warning("%s: the file system of '%s' has no locks. Let no other run write to it.", key, folder)
        yield
        return
    try:
        with suppress(OSError):  # a full disk is told of where more than a name is written
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _name_of(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "another run"
