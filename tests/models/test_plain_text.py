"""The check of an LLM's weights and tokenizer before training."""

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import minigpt4
from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.schema import Config, DatasetConfig, ModelConfig, RunConfig
from minigpt4.models.llm import load_tokenizer
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.plain_text import check_plain_text, plain_text_loss
from minigpt4.runners.runner_base import RunnerBase
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from tests.runners.toy import Pictures

TINY = Path(minigpt4.__file__).parent / "assets" / "tiny" / "llm"


@pytest.fixture(scope="module")
def llm():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.slow
def test_the_bundled_llm_knows_its_own_paragraph_and_not_english(llm, caplog):
    own = load_config("train_configs/minigpt4_tiny_stage2_finetune.yaml").model.plain_text
    check_plain_text(llm, load_tokenizer(TINY), own)
    assert not warnings(caplog)
    check_plain_text(llm, load_tokenizer(TINY), ModelConfig().plain_text)
    assert "wrong weights or tokenizer" in warnings(caplog)[0] and "set model.plain_text" in warnings(caplog)[0]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["tokenizer", "weights", "not numbers"])
def test_the_wrong_tokenizer_or_weights_are_reported(wrong, llm, parity_llm, caplog):
    own = load_config("train_configs/minigpt4_tiny_stage2_finetune.yaml").model.plain_text
    tokenizer = load_tokenizer(parity_llm if wrong == "tokenizer" else TINY)
    if wrong != "tokenizer":
        torch.manual_seed(0)
        llm = AutoModelForCausalLM.from_config(llm.config)
    if wrong == "not numbers":
        torch.nn.init.constant_(llm.model.norm.weight, math.nan)
    check_plain_text(llm, tokenizer, own)
    assert len(warnings(caplog)) == 1


def test_the_loss_is_that_of_guessing_for_weights_of_zero(llm):
    zero = AutoModelForCausalLM.from_config(llm.config)
    for parameter in zero.parameters():
        torch.nn.init.zeros_(parameter)
    loss = plain_text_loss(zero, load_tokenizer(TINY), "a red 7 at the top " * 100)
    assert loss == pytest.approx(math.log(llm.config.vocab_size), abs=1e-5)


def test_a_missing_file_is_refused(parity_config):
    with pytest.raises(UserError, match="model.plain_text: '/no/such' does not exist. Set it to a text file, or"):
        MiniGPT4.from_config(Config(model=replace(parity_config, plain_text="/no/such")))


@pytest.mark.slow
def test_a_run_checks_its_llm_once_and_with_null_not_at_all(parity_config, parity_engine, tmp_path, caplog):
    for i, plain_text in enumerate((None, parity_config.plain_text)):
        run = RunConfig(output_dir=str(tmp_path / str(i)), device="cpu", amp=False, num_workers=0, batch_size_train=4)
        model = replace(parity_config, plain_text=plain_text)
        config = Config(model=model, datasets={"pictures": DatasetConfig()}, run=run)
        datasets = {"train": {"pictures": Pictures(8)}}
        own = copy.deepcopy(parity_engine.model)
        RunnerBase(config, ImageTextPretrainTask(config), own, datasets, parity_engine.prompter).log.close()
        assert len(warnings(caplog)) == i  # of random weights
