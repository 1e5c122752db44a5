"""What the entry points share: arguments, and errors as one line."""

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Callable

from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_IMAGE_PIXELS
from minigpt4.common.signals import end_with_parent

REPEAT_WAIT = 3.0  # seconds until a rank other than 0 says what rank 0 may have said
LOST_RANK_WAIT = 30.0  # seconds in which the rank that failed first says why


def add_serving(parser: argparse.ArgumentParser, port: int) -> None:
    """Gives a parser the arguments of whatever is served over HTTP."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens it to the network")
    parser.add_argument("--port", type=int, default=port, help="(default: %(default)s)")
    parser.add_argument(
        "--allowed-hosts",
        type=host_name,
        nargs="+",
        default=[],
        metavar="HOST",
        help="names by which it may be asked for too; '*' allows any (default: those of this machine; if others reach "
        "it, any)",
    )
    parser.add_argument(
        "--max-image-pixels",
        type=positive,
        default=MAX_IMAGE_PIXELS,
        help="larger pictures are refused, before they are decoded (default: %(default)s)",
    )


def positive(text: str) -> int:
    """An argument's type: a whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on. Give one, for example 8.")
    return int(text)


def host_name(text: str) -> str:
    """An argument's type: a host, `*.example.com` for those below it, or `*` for any."""
    if not re.fullmatch(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*|\[[0-9a-f:.]+\]", name := text.lower(), re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host. Write it alone, for example www.example.com.")
    return name


def credentials(text: str) -> tuple[str, str]:
    """An argument's type: `user:password`; the password may hold colons."""
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("write it as USER:PASSWORD, for example --auth ada:secret.")
    return user, password


class StdoutError(UserError):
    """Nothing more can be written to stdout."""


def require_open(*streams: str) -> None:
    """Raises `UserError` where a standard stream, such as "stdin", is closed."""
    for name in streams:
        if getattr(sys, name) is None:
            raise UserError(f"{name}: is closed. Connect it to a terminal, a file or a pipe.")


def say(text: str) -> None:
    """Writes to stdout, at once.

    Raises:
        BrokenPipeError: nobody reads it any more.
        StdoutError: it can't be written, e.g. to a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise StdoutError(f"stdout: can't be written ({error.strerror}). Connect it to another file.") from None


def discard_stdout() -> None:
    """Gives up what was not written to stdout: Python would try once more when it ends, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(main: Callable[[], object]) -> None:
    """Runs an entry point: a `UserError` becomes one line on stderr and exit code 2, Ctrl-C 130.

    Ranks mostly fail alike, and torchrun ends them all when the first exits. So the others wait: if rank 0 failed too,
    they never come to say it again; if not, they say what only they know.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # of torchrun; killed itself, it can't end its ranks
        end_with_parent()
    if (rank := os.environ.get("RANK", "0")) != "0":
        logging.basicConfig(level=logging.ERROR)  # what it warns of, rank 0 does too
    try:
        main()
    except UserError as error:
        if rank != "0":
            time.sleep(REPEAT_WAIT)
        # a worker process of a loader sends its traceback along; the error is its last line
        message = str(error).strip()
        if message.startswith("Caught UserError"):
            message = message.splitlines()[-1].partition("UserError: ")[2]
        sys.stderr.write(f"error: {message}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if _lost_another_rank(error):  # that one says why, and torchrun ends this one
            time.sleep(LOST_RANK_WAIT)
        raise


def _lost_another_rank(error: Exception) -> bool:
    """Whether an error of torch.distributed (gloo's are plain RuntimeErrors) says that another rank is gone."""
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or "gloo/transport" in str(error)
