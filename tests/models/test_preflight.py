"""Preflight: every problem of a config at once, each with its cure, before anything is loaded."""

import copy
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, ModelConfig, RunConfig
from minigpt4.models.llm import load_tokenizer
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.preflight import check_memory, llm_outline, memory_of_devices, preflight
from minigpt4.models.vision import build_vision
from minigpt4.models.vision.part import convert_weights

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("something was loaded")

    monkeypatch.setattr("minigpt4.models.minigpt4.load_llm", fail)
    monkeypatch.setattr("minigpt4.models.vision.eva_qformer.load_vit_weights", fail)


@pytest.fixture
def llm(parity_llm, tmp_path):
    """A copy of the LLM's folder, to spoil."""
    return shutil.copytree(parity_llm, tmp_path / "llm")


def problems(config: ModelConfig) -> list[str]:
    with pytest.raises(UserError) as error:
        MiniGPT4.from_config(Config(model=config))
    return str(error.value).splitlines()


def test_all_problems_are_reported_at_once(parity_config, llm, tmp_path):
    sizes = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(sizes | {"vocab_size": 400}))
    save_file({"llama_proj.weight": torch.ones(4096, 64)}, tmp_path / "7b.safetensors")
    torch.save({"model": {"llm_proj.weight": torch.ones(64, 5632)}}, tmp_path / "no_qformer.pth")
    ckpt = [str(tmp_path / "7b.safetensors"), "/no/ckpt", str(tmp_path / "no_qformer.pth")]
    lines = problems(
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
        f"model.llama_model: '{llm}': lm_head.weight is [480, 64], its config.json asks for [400, 64]. Put config.json",
        f"model.ckpt: {ckpt[0]}: llama_proj.weight is [4096, 64], this model has [64, 64]: it was trained with an LLM "
        "of width 4096 (7B); this LLM has 64.",
        f"model.ckpt: {ckpt[2]}: llama_proj.weight is [64, 5632], this model has [64, 64]: it was trained with image "
        "embeddings of width 5632 (no Q-Former)",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_more_rows_than_ids_are_fine(parity_config, llm):
    """Vicuna v0 embeds 32001 rows; a tokenizer of 32000 ids never asks for the last."""
    sizes = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(sizes | {"vocab_size": 481}))
    weights = load_file(llm / "model.safetensors")
    rows = {name: torch.ones(481, 64) for name in ("lm_head.weight", "model.embed_tokens.weight")}
    save_file(weights | rows, llm / "model.safetensors")
    config = Config(model=replace(parity_config, llama_model=str(llm)))
    files = preflight(config, build_vision(config))
    assert {key: str(file) for key, file in files.items()} == {
        "model.llama_model": str(llm),
        "model.vit_model": parity_config.vit_model,
        "model.q_former_model": parity_config.q_former_model,
        "model.ckpt": parity_config.ckpt,
    }


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 499723\n"


@pytest.mark.parametrize(
    ("content", "what"), [(POINTER, "is a Git LFS pointer"), (b"<html>", "is a web page"), (b"", "is")]
)
def test_every_file_that_is_something_else_is_reported(content, what, parity_config, llm, tmp_path):
    wrong = {key: tmp_path / f"{key}.pth" for key in ("vit_model", "q_former_model", "ckpt")}
    for file in [*wrong.values(), llm / "model.safetensors", llm / "tokenizer.model"]:
        file.write_bytes(content)
    config = replace(parity_config, llama_model=str(llm), **{key: str(file) for key, file in wrong.items()})
    lines = problems(config)
    expected = [
        *(f"model.{key}: '{file}' {what}" for key, file in wrong.items()),
        f"model.llama_model: no tokenizer in '{llm}': '{llm}/tokenizer.model' {what}",
        f"model.llama_model: '{llm}/model.safetensors' {what}",
    ]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    (llm / "model.safetensors").rename(llm / "pytorch_model-00001-of-00002.bin")
    assert problems(config)[-1].startswith(f"model.llama_model: '{llm}/pytorch_model-00001-of-00002.bin' {what}")
    (llm / "config.json").write_bytes(content)
    assert f"model.llama_model: no causal LM in '{llm}': '{llm}/config.json' {what}" in problems(config)[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"garbage"), "no tokenizer in"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "no tokenizer in"),
        (lambda folder: (folder / "tokenizer.model").rename(folder / "tokenizer.json"), "no tokenizer in"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "no such"}'), "no causal LM in"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "clip_vision_model"}'), "no causal LM in"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "x"}'),
            "no causal",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "no causal LM in"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 0}'),
            "no causal",
        ),
        (lambda folder: (folder / "config.json").unlink(), "is not a folder with a config.json"),
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


@pytest.mark.parametrize("name", ["LLaMATokenizer", "LlamaTokenizer", "Qwen2Tokenizer", None])
def test_a_folder_without_a_tokenizers_file_is_refused(name, parity_config, llm):
    (llm / "tokenizer.model").unlink()
    if name:
        (llm / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    (line,) = problems(replace(parity_config, llama_model=str(llm)))
    assert line.startswith(f"model.llama_model: no tokenizer in '{llm}': ")
    assert line.endswith(". Put tokenizer.model or tokenizer.json of this LLM into the folder.")


@pytest.fixture
def hub(llm, tmp_path, monkeypatch):
    """A cache of the hub that has one model: owner/name."""
    cache = tmp_path / "hub"
    (cache / "models--owner--name" / "refs").mkdir(parents=True)
    (cache / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    snapshot = cache / "models--owner--name" / "snapshots" / ("0" * 40)
    shutil.copytree(llm, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return snapshot


def test_a_hub_id_is_checked_and_read_like_a_folder(parity_config, hub, llm):
    config = replace(parity_config, llama_model="owner/name")
    folder = preflight(Config(model=config), build_vision(Config(model=config)))["model.llama_model"]
    assert folder == hub
    text = "###Human: <s> hi</s>"
    assert load_tokenizer(folder).encode(text) == load_tokenizer(llm).encode(text)
    (hub / "config.json").write_text(json.dumps(json.loads((hub / "config.json").read_text()) | {"vocab_size": 400}))
    assert "'owner/name' has a tokenizer of 480 ids and an LLM that embeds 400" in problems(config)[0]


def test_a_hub_id_whose_weights_are_missing_is_reported(parity_config, hub):
    (hub / "model.safetensors").unlink()
    (line,) = problems(replace(parity_config, llama_model="owner/name"))
    assert line.startswith("model.llama_model: ") and "holds no weights" in line
    assert line.endswith("To download what 'owner/name' lacks: minigpt4 fetch owner/name --download")


def test_all_that_is_not_on_this_machine_is_reported_at_once(parity_config, hub):
    named = {"vit_model": "eva_clip_g", "q_former_model": "https://x.org/q.pth", "llama_model": "Vision-CAIR/vicuna-7b"}
    lines = problems(
        replace(parity_config, **named, ckpt="https://drive.google.com/file/d/1a4zLvaiDBr-36pasffmgpvH5P7CKmpze")
    )
    cures = ["eva_vit_g", "https://x.org/q.pth", "ckpt-vicuna-13b", "vicuna-7b-v0"]
    for line, key, cure in zip(lines, ("vit_model", "q_former_model", "ckpt", "llama_model"), cures, strict=True):
        assert line.startswith(f"model.{key}: ") and f": minigpt4 fetch {cure} --download; or set" in line


@pytest.mark.parametrize("name", ["ckpt/Qwen7B-chat", "/no/such/llm", "please set this value to the path of vicuna"])
def test_what_is_neither_folder_nor_on_the_hub_is_reported_with_the_other_problems(name, parity_config, hub):
    lines = problems(replace(parity_config, llama_model=name, vit_model="/no/vit"))
    assert lines[0].startswith("model.vit_model: '/no/vit'")
    assert lines[1].startswith(f"model.llama_model: '{name}' is not a folder with a config.json")
    assert (f"minigpt4 fetch {name} --download" in lines[1]) == (name == "ckpt/Qwen7B-chat")
    assert lines[1].endswith("or to a hub id; see docs/weights.md.")


def test_code_of_the_llms_own_runs_only_when_asked(parity_config, llm):
    sizes = json.loads((llm / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (llm / "config.json").write_text(json.dumps(sizes | {"model_type": "own", "auto_map": auto}))
    code = "from transformers import LlamaConfig, LlamaForCausalLM\n"
    code += "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    code += "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    (llm / "own.py").write_text(code)
    (llm / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    config = replace(parity_config, llama_model=str(llm))
    (line,) = problems(config)
    assert line.startswith("model.llama_model: no causal LM in") and "model.trust_remote_code=True" in line
    preflight(Config(model=replace(config, trust_remote_code=True)))


@pytest.mark.slow
def test_a_device_that_is_not_there_is_reported_with_the_other_problems(parity_config):
    with pytest.raises(UserError) as error:
        preflight(Config(model=replace(parity_config, vit_model="/no/vit"), run=RunConfig(device="npu")))
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["model.vit_model", "run.device"]


def test_an_unknown_conversation_is_reported(parity_config):
    (line,) = problems(replace(parity_config, conversation="vicuna_v9"))
    assert "Did you mean 'vicuna_v" in line


@pytest.mark.parametrize(
    ("options", "bytes_per_weight"),
    [
        ({"llm_dtype": "fp32"}, 4),
        ({"llm_dtype": "fp16"}, 2),
        ({"quantization": "4bit", "llm_dtype": "bf16", "lora_r": 2}, 0.5),
    ],
)
def test_memory_of_the_weights(options, bytes_per_weight, parity_config, parity_model):
    config = replace(parity_config, vit_precision="fp16", **options)
    vision = build_vision(Config(model=config))
    parts = memory_of_devices(config, vision, llm_outline(Path(config.llama_model)), CPU)[CPU]
    layers = [p for p in parity_model.llm.model.layers.parameters() if p.dim() == 2]
    linear = sum(p.numel() for p in layers)
    rest = sum(p.numel() for p in parity_model.llm.parameters()) - linear
    size = int(max(bytes_per_weight, 2))
    (llm,) = [size for part, size in parts.items() if part.startswith("LLM")]
    assert llm == linear * bytes_per_weight + rest * size
    seeing = copy.deepcopy(parity_model.vision)
    convert_weights(seeing.vit, torch.float16)
    assert parts["vision"] == sum(p.nbytes for p in seeing.parameters())


@pytest.fixture
def vicuna_7b(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # whose defaults are LLaMA-7B's
    return llm_outline(tmp_path)


def gigabytes(devices: dict) -> dict:
    return {str(d): {part: round(size / 1e9, 1) for part, size in parts.items()} for d, parts in devices.items()}


@pytest.mark.slow
def test_memory_of_vicuna_7b_in_8_bits(vicuna_7b):
    config = ModelConfig(low_resource=True, llm_dtype="fp16")
    vision = build_vision(Config(model=config))
    parts = {"vision": 2.4, "LLM (8bit)": 6.9}
    assert gigabytes(memory_of_devices(config, vision, vicuna_7b, CPU)) == {"cpu": parts}
    without = build_vision(Config(model=config), towers=False)
    assert gigabytes(memory_of_devices(config, without, vicuna_7b, CPU)) == {"cpu": parts | {"vision": 0.0}}


@pytest.mark.slow
def test_a_device_map_spreads_the_llm(vicuna_7b, monkeypatch):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    config, card = ModelConfig(device_map="auto", llm_dtype="fp16"), torch.device("cuda", 1)
    vision = build_vision(Config(model=config))
    assert gigabytes(memory_of_devices(config, vision, vicuna_7b, card)) == {
        "cuda:1": {"vision": 2.4, "LLM (float16)": 6.7},
        "cuda:0": {"LLM (float16)": 6.7},
    }


def test_weights_that_do_not_fit_are_reported_before_they_are_read(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("minigpt4.models.preflight.free_memory", lambda _: 8e9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    cards = [torch.device("cuda", i) for i in range(2)]
    check_memory({cards[0]: {"vision": 2e9, "LLM (float16)": 5e9}})
    assert "cuda:0: the weights take 7.00 GB (vision 2.00, LLM (float16) 5.00) of 8.00 GB that are free" in caplog.text
    with pytest.raises(UserError, match="cuda:0: the weights take 9.00 GB .* Set model.quant.* run.strategy=fsdp"):
        check_memory({cards[0]: {"LLM": 9e9}})
    check_memory({cards[0]: {"LLM": 15e9}}, holders=2)
    with pytest.raises(UserError, match=r"take 8.50 GB \(LLM 8.50\) .* are free. Start more processes"):
        check_memory({cards[0]: {"LLM": 17e9}}, holders=2)
    caplog.clear()
    check_memory({card: {"LLM": 9e9} for card in cards})
    check_memory({CPU: {"LLM": 5e9}})  # twice, for two ranks
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 3
    assert "cpu: the weights take 10.00 GB" in caplog.text


@pytest.mark.parametrize(
    ("options", "holders"),
    [({"strategy": "ddp"}, 1), ({"strategy": "fsdp"}, 4)]
    + [({"strategy": "deepspeed", "zero_stage": stage}, 4 if stage == 3 else 1) for stage in range(4)],
)
def test_sharded_weights_are_counted_once_for_all_processes(options, holders, parity_config, monkeypatch):
    checked = []
    monkeypatch.setattr("minigpt4.models.preflight.world_size", lambda: 4)
    monkeypatch.setattr("minigpt4.models.preflight.check_memory", lambda devices, holders: checked.append(holders))
    config = Config(model=parity_config, run=RunConfig(device="cpu", **options))
    preflight(config, build_vision(config))
    assert checked == [holders]
