"""Preflight: every problem of a config at once, each with its cure, before anything is loaded."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from minigpt4.common.config import Config, ModelConfig
from minigpt4.common.errors import UserError
from minigpt4.models.llm import load_tokenizer
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.preflight import llm_outline, memory_of_parts, preflight

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("something was loaded")

    monkeypatch.setattr("minigpt4.models.minigpt4.load_llm", fail)
    monkeypatch.setattr("minigpt4.models.minigpt4.load_vit_weights", fail)


@pytest.fixture
def llm(parity_llm, tmp_path):
    """A copy of the LLM's folder, to spoil."""
    return shutil.copytree(parity_llm, tmp_path / "llm")


def problems(config: ModelConfig) -> list[str]:
    with pytest.raises(UserError) as error:
        MiniGPT4.from_config(Config(model=config))
    return str(error.value).splitlines()


def test_all_problems_are_told_at_once(parity_config, llm, tmp_path):
    sizes = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(sizes | {"vocab_size": 400}))
    save_file({"llama_proj.weight": torch.ones(4096, 64)}, tmp_path / "7b.safetensors")
    torch.save({"model": {"llm_proj.weight": torch.ones(64, 5632)}}, tmp_path / "no_qformer.pth")
    ckpt = [str(tmp_path / "7b.safetensors"), "/no/ckpt", str(tmp_path / "no_qformer.pth")]
    told = problems(
        replace(
            parity_config,
            vit_model="/no/vit",
            q_former_model="/no/q",
            prompt_path="/no/p",
            llama_model=str(llm),
            ckpt=ckpt,
        )
    )
    expected = [
        "model.vit_model: '/no/vit' does not exist. Set it to a file",
        "model.q_former_model: '/no/q' does not exist. Set it to a file",
        "model.ckpt[1]: '/no/ckpt' does not exist. Set it to a file",
        "model.prompt_path: '/no/p' does not exist. Set it to a text file",
        f"model.llama_model: '{llm}' has a tokenizer of 480 ids and an LLM that embeds 400. Put tokenizer and weights",
        f"model.ckpt: {ckpt[0]}: llama_proj.weight is [4096, 64], this model has [64, 64]: it was trained with an LLM "
        "of width 4096 (7B); this LLM has 64.",
        f"model.ckpt: {ckpt[2]}: llama_proj.weight is [64, 5632], this model has [64, 64]: it was trained with image "
        "embeddings of width 5632 (no Q-Former)",
    ]
    assert len(told) == len(expected)
    for line, start in zip(told, expected, strict=True):
        assert line.startswith(start)


def test_more_rows_than_ids_are_fine(parity_config, llm):
    """Vicuna v0 embeds 32001 rows; a tokenizer of 32000 ids never asks for the last."""
    sizes = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(sizes | {"vocab_size": 481}))
    files = preflight(Config(model=replace(parity_config, llama_model=str(llm))))
    assert {key: str(file) for key, file in files.items()} == {
        "model.vit_model": parity_config.vit_model,
        "model.q_former_model": parity_config.q_former_model,
        "model.ckpt": parity_config.ckpt,
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"garbage"), "no tokenizer in"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "no tokenizer in"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "no such"}'), "no causal LM in"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "clip_vision_model"}'), "no causal LM in"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "x"}'),
            "no causal",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "no causal LM in"),
        (lambda folder: (folder / "config.json").unlink(), "is no folder with a config.json"),
    ],
)
def test_folders_that_hold_no_llm(spoil, message, parity_config, llm):
    spoil(llm)
    (line,) = problems(replace(parity_config, llama_model=str(llm)))
    assert line.startswith("model.llama_model: ") and message in line


def test_the_old_name_of_the_tokenizers_class_works(llm):
    (llm / "tokenizer_config.json").write_text('{"tokenizer_class": "LLaMATokenizer"}')
    assert load_tokenizer(str(llm)).encode("hi")[0] == 1
    (llm / "tokenizer.model").unlink()
    Tokenizer(models.WordLevel({"hi": 7, "?": 0}, unk_token="?")).save(str(llm / "tokenizer.json"))
    assert load_tokenizer(str(llm)).encode("hi", add_special_tokens=False) == [7]


def test_hub_ids_are_left_to_the_hub(parity_config, caplog):
    caplog.set_level(logging.INFO)
    preflight(Config(model=replace(parity_config, llama_model="owner/name")))
    assert "weights on " in caplog.text and "LLM" not in caplog.text


def test_an_unknown_conversation_is_told(parity_config):
    (line,) = problems(replace(parity_config, conversation="vicuna_v9"))
    assert "Did you mean 'vicuna_v" in line


@pytest.mark.parametrize(
    ("options", "bytes_per_weight"),
    [({"llm_dtype": "fp32"}, 4), ({"llm_dtype": "fp16"}, 2), ({"quantization": "4bit", "llm_dtype": "bf16"}, 0.5)],
)
def test_memory_of_parts(options, bytes_per_weight, parity_config, parity_model):
    config = replace(parity_config, vit_precision="fp16", **options)
    parts = memory_of_parts(config, llm_outline(config.llama_model), CPU)
    layers = [p for p in parity_model.llama_model.model.layers.parameters() if p.dim() == 2]
    linear = sum(p.numel() for p in layers)
    rest = sum(p.numel() for p in parity_model.llama_model.parameters()) - linear
    size = int(max(bytes_per_weight, 2))
    (llm,) = [size for part, size in parts.items() if part.startswith("LLM")]
    assert llm == linear * bytes_per_weight + rest * size
    assert parts["Q-Former"] == 4 * sum(p.numel() for p in parity_model.Qformer.parameters())


def test_memory_of_vicuna_7b_in_8_bits(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # whose defaults are LLaMA-7B's
    config = ModelConfig(low_resource=True, llm_dtype="fp16")
    parts = {
        part: round(size / 1e9, 1) for part, size in memory_of_parts(config, llm_outline(str(tmp_path)), CPU).items()
    }
    assert parts == {"ViT": 2.0, "Q-Former": 0.4, "LLM (8bit)": 7.0}
