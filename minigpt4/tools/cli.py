"""The console script `minigpt4`: one subcommand for each tool."""

import argparse
import logging

from minigpt4.common.cli import run
from minigpt4.tools.tiny import cli as tiny


def main() -> None:
    """Parses the command line and runs the tool that it names."""
    parser = argparse.ArgumentParser(prog="minigpt4", description="Tools around MiniGPT-4 training and chat.")
    tools = parser.add_subparsers(required=True)
    tiny.add_arguments(tools.add_parser("tiny", help="the bundled tiny model: make its data, make it again"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run(lambda: args.main(args))
