"""The console script `minigpt4`: one subcommand for each tool."""

import argparse
import importlib
import logging
import os
import sys

from minigpt4.common.command_line import discard_stdout, run

_TOOLS = {  # name: module with add_arguments and main, what it is for
    "chat": ("minigpt4.serve.terminal", "talk about images in the terminal"),
    "predict": ("minigpt4.serve.predict", "ask about many images, one answer a line"),
    "tiny": ("minigpt4.tiny.cli", "the bundled tiny model: make its data, make it again"),
    "validate-data": ("minigpt4.tools.validate_data", "check a file of own data, and show some of it on a page"),
    "serve": ("minigpt4.serve.api.command", "answer over HTTP, as OpenAI's API does"),
    "convert-deepspeed": ("minigpt4.tools.convert_deepspeed", "turn a checkpoint of DeepSpeed into one of ours"),
}


def main() -> None:
    """Parses the command line and runs the tool that it names."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 (closed: nobody reads what we say there)
    parser = argparse.ArgumentParser(prog="minigpt4", description="Tools around MiniGPT-4 training and chat.")
    tools = parser.add_subparsers(required=True)
    for name, (module, purpose) in _TOOLS.items():
        tool = tools.add_parser(name, help=purpose)
        if name in sys.argv[1:2]:  # the others are not even imported
            importlib.import_module(module).add_arguments(tool)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        run(lambda: args.main(args))
    except BrokenPipeError:  # who read our output has gone
        discard_stdout()
        sys.exit(141)
