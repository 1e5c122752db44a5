"""Preflight reads the headers of weight files, and refuses what loading them would refuse."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt4.common.errors import Problems, UserError
from minigpt4.config.schema import Config, ModelConfig, VisionConfig
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.preflight import llm_outline, preflight, suspicious_template
from minigpt4.models.vision import build_vision

pytestmark = pytest.mark.slow


def refused(config: ModelConfig) -> list[str]:
    """What preflight says."""
    with pytest.raises(UserError) as error:
        preflight(Config(model=config), build_vision(Config(model=config)))
    return str(error.value).splitlines()


def loading_refuses(config: ModelConfig, monkeypatch) -> str:
    """What loading says, where preflight sees nothing."""
    folder = {f"model.{key}": Path(getattr(config, key)) for key in ("vit_model", "q_former_model", "ckpt")}
    monkeypatch.setattr("minigpt4.models.minigpt4.preflight", lambda *_: folder)
    with pytest.raises(UserError) as error:
        MiniGPT4.from_config(Config(model=config))
    return str(error.value)


@pytest.fixture
def llm(parity_llm, tmp_path):
    """A copy of the LLM's folder, to spoil."""
    return shutil.copytree(parity_llm, tmp_path / "llm")


def test_rows_in_pytorchs_files_are_compared(parity_config, llm):
    weights = load_file(llm / "model.safetensors")
    (llm / "model.safetensors").unlink()
    torch.save(weights, llm / "pytorch_model.bin", _use_new_zipfile_serialization=False)  # as before torch 1.6
    config = replace(parity_config, llama_model=str(llm))
    assert "can't be read in parts. Save it again" in "".join(refused(config))
    torch.save(weights, llm / "pytorch_model.bin")
    preflight(Config(model=config), build_vision(Config(model=config)))
    sizes = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(sizes | {"vocab_size": 481}))
    for line in refused(config):
        assert "is [480, 64], its config.json asks for [481, 64]. Put config.json and weights of one release" in line


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_part_that_is_missing_without_an_index(kind, parity_config, llm, monkeypatch):
    weights = load_file(llm / "model.safetensors")
    (llm / "model.safetensors").unlink()
    half = dict(sorted(weights.items())[: len(weights) // 2])
    if kind == "bin":
        torch.save(half, llm / "pytorch_model-00001-of-00002.bin")
    else:
        save_file(half, llm / "model-00001-of-00002.safetensors", {"format": "pt"})
    config = replace(parity_config, llama_model=str(llm))
    (line,) = refused(config)
    assert f"'{llm}' lacks {len(weights) - len(half)} of the weights that its config.json asks for" in line
    if kind == "bin":
        (llm / "pytorch_model-00001-of-00002.bin").rename(llm / "pytorch_model.bin")  # whose name transformers takes
        assert loading_refuses(config, monkeypatch) == line


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x.weight"], "unknown ['x.weight'], this model does not train it."),
        (["llama_proj.weight"], "missing ['llama_proj.bias'], which this model trains."),
        (["visual_encoder.cls_token"], "unknown ['visual_encoder.cls_token'], this model does not train it."),
    ],
)
def test_checkpoints_that_hold_something_else(names, message, parity_config, tmp_path, monkeypatch):
    file = tmp_path / "x.pth"
    torch.save({name: torch.ones(64, 64) for name in names}, file)
    config = replace(parity_config, ckpt=str(file))
    (line,) = refused(config)
    assert line.startswith(f"model.ckpt: {file}: {message}")
    assert loading_refuses(config, monkeypatch) == line


def test_adapters_of_another_rank_are_reported_before(parity_config, tmp_path):
    weights = load_file(parity_config.ckpt) if parity_config.ckpt.endswith("safetensors") else {}
    weights = weights or torch.load(parity_config.ckpt, weights_only=True)
    name = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    torch.save(weights.get("model", weights) | {name: torch.ones(8, 64)}, tmp_path / "x.pth")
    (line,) = refused(replace(parity_config, lora_r=2, ckpt=str(tmp_path / "x.pth")))
    assert "its adapters have rank 8: set model.lora_r=8." in line
    # the projection alone is what the first stage leaves
    preflight(Config(model=replace(parity_config, lora_r=2)), build_vision(Config(model=parity_config)))


def test_of_checkpoints_that_are_not_all_there_none_is_missing_something(parity_config, tmp_path):
    torch.save({"llama_proj.weight": torch.ones(64, 64)}, tmp_path / "x.pth")
    (line,) = refused(replace(parity_config, ckpt=[str(tmp_path / "x.pth"), "/no/ckpt"]))
    assert line.startswith("model.ckpt[1]: '/no/ckpt' does not exist")


def test_vit_and_qformer_swapped(parity_config, monkeypatch):
    vit, qformer = parity_config.vit_model, parity_config.q_former_model
    config = replace(parity_config, vit_model=qformer, q_former_model=vit)
    first, second = refused(config)
    assert first.startswith(f"model.vit_model: {qformer} does not fit model.vit, an EVA-ViT of depth")
    assert second.startswith(f"model.q_former_model: {vit} does not fit model.qformer and model.vit: missing")
    assert loading_refuses(config, monkeypatch) == first


def test_a_llama_with_the_template_of_vicuna_v0_is_warned_of(tmp_path):
    def warnings(rows: int, conversation: str) -> list[str]:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
        return suspicious_template(ModelConfig(conversation=conversation, llama_model="x"), llm_outline(tmp_path))

    (line,) = warnings(32_000, "vicuna_v0")
    assert "'x' has 32000, as Vicuna v1.1" in line and "###Human" in line
    assert warnings(32_001, "vicuna_v0") == warnings(32_000, "vicuna_v1.1") == []


def test_what_is_there_is_reported_even_where_something_is_wrong(parity_config, monkeypatch, caplog):
    monkeypatch.setattr("minigpt4.models.preflight.suspicious_template", lambda *_: ["perhaps wrong"])
    config, files, problems = Config(model=replace(parity_config, ckpt="/no/ckpt")), {}, Problems()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError):
        preflight(config, build_vision(config), problems, files)
    assert files.keys() == {"model.vit_model", "model.q_former_model", "model.llama_model"}
    assert problems.warnings == ["perhaps wrong"] and "perhaps wrong" in caplog.text
    assert any(re.search("tokenizer has 480 ids, the LLM's embedding 480 rows", line) for line in problems.passed)


def test_what_is_no_checkpoint_is_refused_with_key_and_cure(parity_config, parity_llm, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(bytes(range(255)))
    for ckpt, what in (
        (tmp_path, "holds no model.safetensors"),
        (tmp_path / "tokenizer.model", "can't be read as weights"),
        (f"{parity_llm}/model.safetensors", "It is an LLM, which model.llama_model names."),
    ):
        (line,) = refused(replace(parity_config, ckpt=str(ckpt)))
        assert line.startswith("model.ckpt: ") and what in line and "Set model.ckpt to a checkpoint: a folder" in line


def test_an_index_that_is_a_web_page_is_reported_with_the_key(parity_config, llm):
    (llm / "model.safetensors.index.json").write_text("<!doctype html><html></html>")
    assert any(
        line.startswith("model.llama_model: ") and "is a web page" in line
        for line in refused(replace(parity_config, llama_model=str(llm)))
    )


def test_a_folder_that_is_still_being_written(parity_config, llm):
    (llm / "unfinished.json").write_text("{}")
    (line,) = refused(replace(parity_config, llama_model=str(llm)))
    assert line.startswith("model.llama_model: ") and "is unfinished" in line and "minigpt4 apply-delta" in line


@pytest.mark.parametrize(("model", "what"), [(None, "it is not set"), ("/no/tower.onnx", "'/no/tower.onnx' is not a")])
def test_a_missing_onnx_tower_is_reported_once_with_the_key(model, what, parity_config):
    config, problems = Config(model=replace(parity_config, vision=VisionConfig(name="onnx", model=model))), Problems()
    problems.attempt(build_vision, config)
    with pytest.raises(UserError):
        preflight(config, None, problems)
    (line,) = [line for line in problems if "model.vision" in line]
    assert line.startswith(f"model.vision.model: {what}") and "export onnx" in line


def test_far_fewer_ids_than_rows_are_warned_of(parity_config, monkeypatch):
    monkeypatch.setattr("minigpt4.models.preflight.check_tokenizer", lambda *_: 300)  # of 480
    problems = Problems()
    preflight(Config(model=parity_config), build_vision(Config(model=parity_config)), problems)
    assert any("its tokenizer has 300 ids, the LLM's embedding 480 rows" in line for line in problems.warnings)
    assert any(f"the template '{parity_config.conversation}' fits" in line for line in problems.passed)
