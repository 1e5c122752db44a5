"""`minigpt4 validate-data`: checks a file of own data before a run does, and shows some of it on a page."""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.common.errors import UserError, make_folder
from minigpt4.common.paths import TINY_LLM
from minigpt4.config.loading import load_config
from minigpt4.config.schema import Config, DatasetConfig, ModelConfig

if TYPE_CHECKING:  # slow to import
    from minigpt4.datasets.validation import Report
    from minigpt4.tools.preparing.checks import Checked

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument("file", help="JSON, JSON lines or Parquet file of records, see dataset/README.md")
    parser.add_argument("--images", help="folder where file names begin (default: as in training)")
    parser.add_argument("--cfg-path", help="config of the run: its tokenizer, templates and limits decide")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of --cfg-path")
    parser.add_argument(
        "--tokenizer",
        default=str(TINY_LLM),
        help="without --cfg-path: folder or hub id of the LLM whose tokenizer counts (default: the bundled tiny one)",
    )
    parser.add_argument("--page", type=Path, help="HTML file to write: 20 samples to look at")


def main(args: argparse.Namespace) -> None:
    """Checks a file, prints what is found, and exits with 1 where there are problems."""
    from minigpt4.datasets.validation import TokenCounter, check_file
    from minigpt4.inference.loading import load_prompter

    if args.options and not args.cfg_path:
        raise UserError("--options: there is no config that they could override. Set --cfg-path too.")
    if args.page:
        make_folder("--page", args.page.parent)
    config = load_config(args.cfg_path, args.options) if args.cfg_path else None
    block = _block_of(config, args.file)
    model = config.model if config else ModelConfig(llama_model=args.tokenizer)
    counter = TokenCounter(load_prompter(model), model.llama_model, limits=bool(config))
    report = check_file(args.file, args.images, block, counter)
    sys.stdout.write(report.text())
    if args.page:
        write_page(args.page, report)
    if any(sample.problems for sample in report.samples):
        sys.exit(1)


def _block_of(config: Config | None, file: str) -> DatasetConfig:
    """The config's block of this file; the defaults where it has none."""
    for block in config.datasets.values() if config else ():
        storages = (block.build_info.storage, block.build_info.valid_storage)
        if Path(file).resolve() in [Path(own).resolve() for own in storages if isinstance(own, str) and own]:
            return block
    if config:
        logger.warning("--cfg-path: no dataset has '%s' as its storage; its images are looked for by default", file)
    return DatasetConfig()


def write_page(page: Path, report: "Report | Checked") -> None:
    """Writes one HTML file that needs no other."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    make_folder("--page", page.parent)
    templates = Environment(loader=PackageLoader("minigpt4", "assets"), autoescape=True, undefined=StrictUndefined)
    html = templates.get_template("validate_data.html").render(report=report)
    try:
        page.write_text(html, encoding="utf-8", errors="backslashreplace")  # names of files may be no text
    except OSError as error:
        raise UserError(f"--page: '{page}' can't be written ({error.strerror}). Name another file.") from None
