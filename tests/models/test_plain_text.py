"""The check of an LLM's weights and tokenizer before training."""

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
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.models.llm import load_tokenizer
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.plain_text import check_plain_text, plain_text_loss

TINY = Path(minigpt4.__file__).parent / "assets" / "tiny" / "llm"


@pytest.fixture(scope="module")
def llm():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_the_bundled_llm_knows_its_own_paragraph_and_not_english(llm, caplog):
    own = load_config("train_configs/minigpt4_tiny_stage2_finetune.yaml").model.plain_text
    check_plain_text(llm, load_tokenizer(TINY), own)
    assert not warnings(caplog)
    check_plain_text(llm, load_tokenizer(TINY), ModelConfig().plain_text)
    assert "wrong weights or tokenizer" in warnings(caplog)[0] and "set model.plain_text" in warnings(caplog)[0]


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


def test_a_missing_file_is_refused_and_null_checks_nothing(parity_config, parity_model, monkeypatch, caplog):
    with pytest.raises(UserError, match="model.plain_text: '/no/such' does not exist. Set it to a text file, or"):
        MiniGPT4.from_config(Config(model=replace(parity_config, plain_text="/no/such")))
    monkeypatch.setattr(parity_model, "plain_text", None)
    parity_model.check_language()
    assert not warnings(caplog)
    monkeypatch.setattr(parity_model, "plain_text", ModelConfig().plain_text)
    parity_model.check_language()  # random weights
    assert len(warnings(caplog)) == 1
