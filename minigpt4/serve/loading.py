"""From a config to a model that answers: what every door begins with."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from minigpt4.common.command_line import PATIENCE
from minigpt4.config.loading import load_config
from minigpt4.config.names import check_names
from minigpt4.config.schema import Config

DEFAULT_CONFIG = str(Path(__file__).parents[2] / "eval_configs" / "minigpt4_tiny_eval.yaml")  # started from anywhere


def read_config(args: argparse.Namespace) -> Config:
    """The config that a command names, checked; a wrong one fails before slow imports.

    Raises:
        UserError: see `load_config`.
    """
    config = load_config(args.cfg_path, args.options)
    check_names(config)
    return config


@contextmanager
def quietly() -> Iterator[None]:
    """Around the loading of a model: says nothing but warnings from here on, for the answers are what is asked for.

    On a terminal, one line tells of a load that takes long.
    """
    told = Timer(PATIENCE, sys.stderr.write, ["Loading the model...\n"])
    if sys.stderr.isatty():
        told.start()
    try:
        from transformers.utils.logging import disable_progress_bar

        logging.getLogger().setLevel(logging.WARNING)
        disable_progress_bar()
        yield
    finally:
        told.cancel()
