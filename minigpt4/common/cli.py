"""What the entry points share: arguments, and errors as one line."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable

from minigpt4.common.errors import UserError

PATIENCE = 3.0  # seconds


def config_parser(description: str, default: str | None = None) -> argparse.ArgumentParser:
    """A parser with the arguments of every entry point: `--cfg-path` and `--options`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--cfg-path", default=default, required=default is None, help=f"YAML file of the run (default: {default})"
    )
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override keys, e.g. run.max_epoch=2",
    )
    return parser


def run(main: Callable[[], object]) -> None:
    """Runs an entry point: a `UserError` becomes one line on stderr and exit code 2.

    Ranks mostly fail alike, and torchrun ends them all when the first exits. So the others wait: if rank 0 failed too,
    they never come to say it again; if not, they say what only they know.
    """
    if (rank := os.environ.get("RANK", "0")) != "0":
        logging.basicConfig(level=logging.ERROR)  # what it warns of, rank 0 does too
    try:
        main()
    except UserError as error:
        if rank != "0":
            time.sleep(PATIENCE)
        # a worker process of a loader sends its traceback along; the error is its last line
        message = str(error).strip()
        if message.startswith("Caught UserError"):
            message = message.splitlines()[-1].partition("UserError: ")[2]
        sys.stderr.write(f"error: {message}\n")
        sys.exit(2)
