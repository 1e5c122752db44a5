"""The entry points tell all problems of device, model and data at once, before anything is loaded."""

import sys

import pytest

import evaluate
import train
from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.serve.web.server import serve

WRONG = ["run.device=npu", "model.vit_model=/no/vit", "model.llama_model=/no/llm"]
KEYS = ["run.device", "model.vit_model", "model.llama_model"]


def keys_of(error: pytest.ExceptionInfo) -> list[str]:
    return [line.split(": ")[0] for line in str(error.value).splitlines()]


@pytest.mark.parametrize(
    ("script", "config", "options", "keys"),
    [
        (
            train,
            "train_configs/minigpt4_stage1_pretrain.yaml",
            ["run.valid_splits=[val]", "run.evaluate=True"],
            ["run.evaluate", "datasets.laion.build_info.storage", "datasets.cc_sbu.build_info.storage", "datasets"],
        ),
        (
            evaluate,
            "eval_configs/minigpt4_tiny_benchmark.yaml",
            ["evaluation_datasets.tiny_scenes.eval_file_path=/no/questions"],
            ["evaluation_datasets.tiny_scenes.eval_file_path"],
        ),
    ],
)
def test_all_problems_are_told_at_once(script, config, options, keys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--cfg-path", config, "--options", *WRONG, *options])
    with pytest.raises(UserError) as error:
        script.main()
    assert keys_of(error) == [KEYS[0], *keys, *KEYS[1:]]


def test_the_demo_tells_its_address_too():
    with pytest.raises(UserError) as error:
        serve(load_config("eval_configs/minigpt4_tiny_eval.yaml", WRONG), port=-1)
    assert keys_of(error) == ["--host 127.0.0.1 --port -1", "model.vit_model", "run.device", "model.llama_model"]
