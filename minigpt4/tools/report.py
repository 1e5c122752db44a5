"""`minigpt4 report`: one HTML page of results."""

import argparse
import logging
from pathlib import Path

from minigpt4.common.errors import UserError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument(
        "results", nargs="+", metavar="RESULT", help="folder that `minigpt4 evaluate` wrote, or above it"
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    parser.add_argument("--most", type=int, default=200, metavar="N", help="questions shown of each (default: 200)")


def main(args: argparse.Namespace) -> None:
    """Writes the page.

    Raises:
        UserError: a folder holds no result, or the page can't be written.
    """
    from minigpt4.evaluation.report import render
    from minigpt4.evaluation.results import MANIFEST, SCORES, read_result

    if args.most < 0:
        raise UserError(f"--most: {args.most} is out of range. Set it to 0 or more.")
    folders: list[Path] = []
    for folder in map(Path, args.results):
        inside = (
            sorted(file.parent for file in folder.glob(f"*/{MANIFEST}")) if not (folder / MANIFEST).is_file() else []
        )
        finished = [own for own in inside if (own / SCORES).is_file()]
        for own in set(inside) - set(finished) if finished else ():
            logger.warning("%s: left out, for its evaluation has not ended. Run it again: it continues there.", own)
        folders += finished or [folder]
    page = render([read_result(folder) for folder in folders], args.most)
    try:
        args.out.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"--out: '{args.out}' can't be written ({error.strerror}). Name another file.") from None
    logger.info("%s: open it in a browser", args.out)
