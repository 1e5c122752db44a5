"""The console script `minigpt4`: one subcommand for each tool."""

import argparse

from minigpt4.common.cli import run
from minigpt4.tools.tiny import cli as tiny


def main() -> None:
    """Parses the command line and runs the tool that it names."""
    parser = argparse.ArgumentParser(prog="minigpt4", description="Tools around MiniGPT-4 training and chat.")
    tools = parser.add_subparsers(dest="tool", required=True)
    tiny.add_arguments(tools.add_parser("tiny", help="the bundled tiny model: make its data, make it again"))
    args = parser.parse_args()
    run(lambda: tiny.main(args))
