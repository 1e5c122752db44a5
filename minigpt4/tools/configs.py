"""`minigpt4 configs`: lists the run configs that come with the package, or copies them to be changed."""

import argparse
import sys
from pathlib import Path

from minigpt4.common.command_line import require_open, say
from minigpt4.common.errors import UserError, make_folder, writing
from minigpt4.config.finding import packaged, run_configs

_FOLDERS = ("train_configs", "eval_configs", "prompts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument("--copy", type=Path, metavar="DIR", help="copy them there, with the prompts of training")


def main(args: argparse.Namespace) -> None:
    """Prints a line for each config: its name, and what its first comment says."""
    if args.copy:
        copy_configs(args.copy)
        return
    require_open("stdout")
    files = run_configs()
    width = max(map(len, files))
    for name, file in files.items():
        purpose = file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        say(f"{name:{width}}  {purpose}\n")


def copy_configs(target: Path) -> None:
    """Copies configs and prompts, in the folders that they lie in here.

    Raises:
        UserError: a copy can't be written, or would replace a file that was changed: then nothing is copied.
    """
    files = [file for name in _FOLDERS for file in sorted(packaged(name).iterdir()) if file.is_file()]
    sources = {target / file.parent.name / file.name: file for file in files}
    for copy, file in sources.items():
        if copy.exists() and not (copy.is_file() and copy.read_bytes() == file.read_bytes()):
            raise UserError(f"--copy: '{copy}' is there already, and differs. Name another folder, or move it.")
    for copy, file in sources.items():
        make_folder("--copy", copy.parent)
        with writing("--copy", copy):
            copy.write_bytes(file.read_bytes())
    sys.stderr.write(f"{len(sources)} files are in '{target}'\n")
