"""Which ranks say what on the console."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt4.common import console_log

ROOT = Path(__file__).parents[2]


SPEAKERS = """
import logging, warnings
from minigpt4.common import console_log

for who in ("main", "other"):
    console_log.is_main = lambda: who == "main"
    console_log.setup_logger()
    for name in (
        "minigpt4.models.llm",
        "minigpt4.models.checkpoint",
        "transformers.modeling_utils",
        "minigpt4.datasets.loading",
        "minigpt4.runners.feature_cache",
    ):
        logging.getLogger(name).warning(f"{who} warns: {name}")
    warnings.warn(f"{who} warns: python")
    logging.getLogger("minigpt4.models.llm").error(f"{who} errs")
"""


@pytest.mark.slow
def test_other_ranks_say_only_what_they_alone_know():
    done = subprocess.run([sys.executable, "-c", SPEAKERS], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("minigpt4.models.llm", "minigpt4.models.checkpoint", "transformers.modeling_utils", "python"):
        assert f"main warns: {name}" in done.stderr and f"other warns: {name}" not in done.stderr
    for name in ("minigpt4.datasets.loading", "minigpt4.runners.feature_cache"):  # of their own samples
        assert f"main warns: {name}" in done.stderr and f"other warns: {name}" in done.stderr
    assert "main errs" in done.stderr and "other errs" in done.stderr


def test_the_modules_that_know_samples_are_named_as_they_are():
    for name in console_log.OF_SAMPLES:
        assert importlib.import_module(name).logger.name == name
