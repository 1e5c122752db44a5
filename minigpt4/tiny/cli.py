"""`minigpt4 tiny data` and `minigpt4 tiny pretrain`."""

import argparse
from pathlib import Path

from minigpt4.common.errors import make_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    commands = parser.add_subparsers(dest="tiny_command", required=True)
    data = commands.add_parser("data", help="write the digit-scene data sets of all tiny recipes and benchmarks")
    data.add_argument("--out", type=Path, default=Path("dataset/tiny"), help="folder to write (default: %(default)s)")
    pretrain = commands.add_parser("pretrain", help="make the bundled tiny model again, from nothing, on two cores")
    pretrain.add_argument("--out", type=Path, required=True, help="folder to write; finished stages in it are kept")
    pretrain.add_argument(
        "--scale", type=float, default=1.0, help="part of every stage's length (default: %(default)s)"
    )
    for command in (data, pretrain):
        command.add_argument("--seed", type=int, default=0, help="same seed, same files (default: %(default)s)")


def main(args: argparse.Namespace) -> None:
    """Runs the chosen subcommand."""
    make_folder("--out", args.out)
    if args.tiny_command == "data":
        from minigpt4.tiny.data import write_all

        write_all(args.out, args.seed)
    else:
        from minigpt4.tiny.pretrain import pretrain

        pretrain(args.out, args.seed, args.scale)
