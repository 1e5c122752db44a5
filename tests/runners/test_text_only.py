"""A rank whose batch is text alone waits for no other, with every strategy."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt4.common.distributed import is_main, rank
from minigpt4.config.loading import load_config
from minigpt4.inference.loading import load_prompter
from minigpt4.runners.log import parts_table
from minigpt4.runners.strategies.building import build_strategy
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from tests.batches import batch_of, instructed
from tests.runners.run_strategies import ROOT
from tests.runners.toy import on_ranks

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")
SHARDED = ("fsdp", "deepspeed")
CASES = {"frozen": ("[]", True), "unfrozen": ("[vit,qformer]", True), "cached": ("[]", False)}


def train(strategy: str, unfreeze: str, towers: bool, file: Path) -> None:
    """Three steps: text beside a picture, a picture beside text, and text alone on both ranks."""
    options = [f"run.strategy={strategy}", "run.zero_stage=3", "run.amp=False", "run.batch_size_train=1"]
    options += ["run.eps=1e-3", "model.ckpt=null", "model.use_grad_checkpoint=True", f"model.unfreeze={unfreeze}"]
    config = load_config(ROOT / "train_configs" / "minigpt4_tiny_stage2_finetune.yaml", options)
    torch.manual_seed(0)
    model = ImageTextPretrainTask(config).build_model(towers=towers)
    prompter = load_prompter(config.model)
    text = batch_of(prompter, [instructed("1.", "What is 1?")])
    shown = batch_of(
        replace(prompter, image_tags=("", "")), [instructed("A dot.", model.vision.blank(CPU)[0], " What?")]
    )
    engine = build_strategy(model, config.run, CPU)
    engine.wrapped.train()
    for step in range(3):
        with engine.accumulating(last=True):
            loss = engine.wrapped(shown if step < 2 and rank() != step else text)["loss"]
            engine.backward(loss, last=True)
        assert engine.step(1e-3)
    weights = engine.weights()
    if is_main():
        file.with_suffix(".md").write_text(parts_table(model))
        save_file(weights, file)


def train_all(folder: Path) -> None:
    for name in CASES:
        for strategy in ("ddp", *SHARDED):
            train(strategy, *CASES[name], folder / f"{name} {strategy}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text_only")
    on_ranks(2, train_all, folder)
    return folder


@pytest.mark.parametrize("strategy", SHARDED)
@pytest.mark.parametrize("name", CASES)
def test_text_beside_a_picture_trains_as_with_ddp(name, strategy, trained):
    expected, found = (load_file(trained / f"{name} {of}") for of in ("ddp", strategy))
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, atol=2e-5, rtol=0)


@pytest.mark.parametrize("strategy", SHARDED)
def test_the_table_of_parts_counts_what_other_ranks_hold(strategy, trained):
    table, expected = ((trained / f"unfrozen {of}.md").read_text() for of in (strategy, "ddp"))
    assert table == expected
