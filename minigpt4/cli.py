"""The console script `minigpt4`: one subcommand for each tool.

A tool's `main` raises `UserError` for whatever its user can mend.
"""

import argparse
import importlib
import logging
import os
import sys

from minigpt4.common.command_line import discard_stdout, run

TOOLS = {  # name: module with add_arguments and main, what it is for
    "demo": ("minigpt4.serve.web.command", "chat about images on a web page"),
    "chat": ("minigpt4.serve.terminal", "talk about images in the terminal"),
    "predict": ("minigpt4.serve.predict", "ask about many images, one answer a line"),
    "serve": ("minigpt4.serve.api.command", "answer over HTTP, as OpenAI's API does"),
    "train": ("minigpt4.tools.train", "align a vision tower with an LLM, as a config says"),
    "evaluate": ("minigpt4.tools.evaluate", "score a model on questions, as a config says"),
    "score": ("minigpt4.tools.score", "score answers to a benchmark that were made anywhere"),
    "compare": ("minigpt4.tools.compare", "put two results side by side: the difference, and how sure it is"),
    "report": ("minigpt4.tools.report", "make a page of results: scores, a chart, a gallery of answers"),
    "configs": ("minigpt4.tools.configs", "list the configs that come along, or copy them to change them"),
    "tiny": ("minigpt4.tiny.cli", "the bundled tiny model: make its data, make it again"),
    "doctor": ("minigpt4.tools.doctor.command", "check this machine and a config: files, sizes, memory, time"),
    "fetch": ("minigpt4.tools.fetch.command", "list the weights that published models need, or download them"),
    "show-data": ("minigpt4.tools.show_data", "show what training would see of its data, and what it learns"),
    "validate-data": ("minigpt4.tools.validate_data", "check a file of own data, and show some of it on a page"),
    "prepare-data": ("minigpt4.tools.preparing.command", "make training data of published files, and check it"),
    "export": ("minigpt4.tools.export", "write the image tower as an ONNX file for other runtimes"),
    "bench": ("minigpt4.tools.bench.command", "measure how long answers and images take, beside published figures"),
    "apply-delta": ("minigpt4.tools.apply_delta", "apply a Vicuna delta to LLaMA weights"),
    "make-delta": ("minigpt4.tools.make_delta", "write the delta between a fine-tuned model and LLaMA"),
    "convert-llama": ("minigpt4.tools.convert_llama", "convert LLaMA weights in Meta's layout to a Hugging Face model"),
    "convert-deepspeed": ("minigpt4.tools.convert_deepspeed", "turn a checkpoint of DeepSpeed into one of ours"),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the tool that the first argument names; the arguments are those of the command line, unless given."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 (closed: nobody reads what we say there)
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="minigpt4", description="Train MiniGPT-4, and talk with it about images.")
    tools = parser.add_subparsers(required=True)
    for name, (module, purpose) in TOOLS.items():
        tool = tools.add_parser(name, help=purpose, description=purpose)
        if name in arguments[:1]:  # the others are not even imported
            importlib.import_module(module).add_arguments(tool)
    args = parser.parse_args(arguments)
    try:
        run(lambda: _start(args))
    except BrokenPipeError:  # who read our output has gone
        discard_stdout()
        sys.exit(141)


def _start(args: argparse.Namespace) -> None:
    # does nothing on ranks other than 0, where `run` says what is shown
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args.main(args)
