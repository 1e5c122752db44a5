"""`minigpt4 make-delta`: writes the delta between a fine-tuned model and LLaMA; the inverse of `apply-delta`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument("--base", required=True, metavar="MODEL", help="LLaMA: a folder or a downloaded hub id")
    parser.add_argument("--target", required=True, metavar="MODEL", help="the model that was made from it")
    parser.add_argument("--delta", type=Path, required=True, metavar="FOLDER", help="to write, in safetensors")


def main(args: argparse.Namespace) -> None:
    """Writes the delta. A run that was ended continues; both inputs stay as they are.

    Raises:
        UserError: see `deltas.combine`.
    """
    from minigpt4.tools.deltas import combine

    combine({"--base": args.base, "--target": args.target}, -1, ("--delta", args.delta))
