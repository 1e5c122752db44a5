"""The Python API: `load_config`, `load_model` and `Chat`, of a package whose import does nothing."""

import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

import minigpt4
from minigpt4.common.errors import UserError
from tests.serve.predicting import COUNT, SCENES


def test_importing_loads_nothing():
    code = "import sys, minigpt4; sys.exit(any(name in sys.modules for name in ('torch', 'omegaconf', 'yaml', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_is_public_is_there_and_nothing_else():
    assert all(callable(getattr(minigpt4, name)) for name in minigpt4.__all__)
    with pytest.raises(AttributeError, match="module 'minigpt4' has no attribute 'load_modle'"):
        minigpt4.load_modle  # noqa: B018


@pytest.mark.slow
def test_a_chat_with_the_bundled_model_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = minigpt4.Chat(minigpt4.load_model(options=["run.device=cpu"]))
    with Image.open(SCENES[0]) as picture:
        assert chat.answer([picture, COUNT]) == "three"


def test_wrong_names_are_reported_before_anything_is_loaded():
    with pytest.raises(UserError, match="Did you mean 'minigpt4_tiny_eval'"):
        minigpt4.load_model("minigpt4_tiny_evl")
    config = minigpt4.load_config("minigpt4_tiny_eval")
    with pytest.raises(UserError, match="run.task: 'vqq' is not a registered task. Did you mean 'vqa'"):
        minigpt4.load_model(replace(config, run=replace(config.run, task="vqq")))
    with pytest.raises(UserError, match=r"^options: \['run.seed=1'\] override keys of a file"):
        minigpt4.load_model(config, ["run.seed=1"])
