"""`minigpt4 apply-delta`: applies a Vicuna delta to LLaMA weights."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument("--base", required=True, metavar="MODEL", help="LLaMA: a folder or a downloaded hub id")
    parser.add_argument("--delta", required=True, metavar="MODEL", help="such as lmsys/vicuna-7b-delta-v0")
    parser.add_argument("--target", type=Path, required=True, metavar="FOLDER", help="to write, in safetensors")


def main(args: argparse.Namespace) -> None:
    """Writes the model. A run that was ended continues; both inputs stay as they are.

    Raises:
        UserError: see `deltas.combine`.
    """
    from minigpt4.tools.deltas import combine

    combine({"--base": args.base, "--delta": args.delta}, +1, ("--target", args.target))
