"""What commands that run for long say on the console: log records, from rank 0."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minigpt4.common.distributed import distributed, is_main, pick_device
from minigpt4.common.errors import Problems

OF_SAMPLES = ("minigpt4.datasets.loading", "minigpt4.runners.feature_cache")


def setup_logger() -> None:
    """Sends log records to stderr. Ranks other than 0 show errors, and what is wrong with samples of their own."""
    main = is_main()
    level = logging.INFO if main else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", force=True)
    for chatty in ("httpx", "matplotlib", "PIL", "DeepSpeed"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
    if main:
        return
    for own in OF_SAMPLES:
        logging.getLogger(own).setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    from transformers.utils import logging as of_transformers  # slow to import

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()


@contextmanager
def run_on(device_name: str) -> Iterator[Problems]:
    """Joins torchrun's processes for the duration of a run, and sets up the log.

    Gives the problems found so far, to be raised with others before anything is loaded.
    """
    problems = Problems()
    device = problems.attempt(pick_device, device_name) or torch.device("cpu")
    with distributed(device):
        setup_logger()
        yield problems
