"""`minigpt4 compare`: two results of one benchmark side by side."""

import argparse
import json

from minigpt4.common.command_line import require_open, say
from minigpt4.common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument("results", nargs=2, metavar="RESULT", help="folder that `minigpt4 evaluate` wrote")
    parser.add_argument("--most", type=int, default=10, metavar="N", help="flipped samples shown (default: 10)")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def main(args: argparse.Namespace) -> None:
    """Prints the difference of two results, with its interval, and the samples that make it.

    Raises:
        UserError: a folder is not a result, or they have no question in common.
    """
    require_open("stdout")
    if args.most < 0:
        raise UserError(f"--most: {args.most} is out of range. Set it to 0 or more.")
    from minigpt4.evaluation.comparing import compare, described
    from minigpt4.evaluation.results import read_result

    comparison = compare(*map(read_result, args.results))
    say(json.dumps(comparison.json(), indent=2) + "\n" if args.json else described(comparison, args.most))
