"""From a config to a model that answers: what every door begins with."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING

from minigpt4.common.command_line import PATIENCE
from minigpt4.common.errors import Problems
from minigpt4.config.schema import Config

if TYPE_CHECKING:  # slow to import
    from PIL import Image
    from torch import Tensor

    from minigpt4.models.minigpt_base import MiniGPTBase


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


def load_model(
    config: Config, problems: Problems | None = None
) -> tuple["MiniGPTBase", "Callable[[Image.Image], Tensor]"]:
    """The model of a config in eval mode on its device, and its eval processor.

    Raises:
        UserError: a file is missing or does not fit; all problems are told at once, those found before too.
    """
    from minigpt4.common.distributed import pick_device
    from minigpt4.common.registry import registry
    from minigpt4.processors import build_processor

    model = registry.get_model_class(config.model.arch).from_config(config, problems=problems)
    model.place(pick_device(config.run.device)).answering()
    return model, build_processor(config.preprocess.vis_processor.eval)
