"""The arguments that name a config or a model, and the config that they name."""

import argparse
import os

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config, load_model_config
from minigpt4.config.names import check_names
from minigpt4.config.schema import Config


def add_config_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Gives a parser `--cfg-path`, which is required unless it has a default, and `--options`."""
    default_note = f" (default: {default})" if default else ""
    parser.add_argument(
        "--cfg-path",
        required=default is None,
        metavar="CONFIG",
        help=f"YAML file of the run, or a name that `minigpt4 configs` lists{default_note}",
    )
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys, e.g. run.max_epoch=2"
    )
    parser.set_defaults(model=None, default_config=default)


def add_model_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Gives a parser `MODEL` besides the arguments of a config."""
    add_config_arguments(parser, default)
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="checkpoint folder that training wrote: its model takes the place of the config's; or a config, as "
        "--cfg-path takes it",
    )


def read_config(args: argparse.Namespace) -> Config:
    """The config that the arguments name, checked; a wrong one fails before slow imports. Raises as `load_config`."""
    if args.model and args.cfg_path and not os.path.isdir(args.model):
        raise UserError(
            f"MODEL: '{args.model}' is not a checkpoint folder, so it names a config, and so does --cfg-path. Leave "
            "one of them out."
        )
    base = args.cfg_path or args.default_config
    config = load_model_config(args.model, args.options, base) if args.model else load_config(base, args.options)
    check_names(config)
    return config
