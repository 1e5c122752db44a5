"""Estimates: the sizes that are known of models of full size, built without memory; benchmarks/memory.py measures."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from minigpt4.config.schema import Config, ModelConfig, RunConfig, VitConfig
from minigpt4.models.preflight import llm_outline
from minigpt4.models.vision import build_vision
from minigpt4.tools.doctor.devices import known_devices
from minigpt4.tools.doctor.estimating import Setting, estimate, fits
from minigpt4.tools.doctor.peak_memory import PeakMemory

CPU, H100 = known_devices()["3090"], known_devices()["h100"]
CPU = replace(CPU, on_cpu=True, memory=16e9)


def test_the_peak_is_of_what_lives_together():
    layers = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100)).requires_grad_(False)
    images = torch.zeros(1000, 100)
    with PeakMemory() as memory, torch.no_grad():
        layers(images)
    assert memory.most == 2 * images.nbytes


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Of a LLaMA as wide as 7B, of so many layers, with ViT-g or a small tower."""
    folder = tmp_path_factory.mktemp("llama")

    def make(device, run=None, count=1, layers=4, vit=SMALL, **model) -> Setting:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers}))
        config = Config(model=ModelConfig(vit=vit, **model), run=run or RunConfig(batch_size_train=4))
        return Setting(config, build_vision(config), llm_outline(folder), None, device, 1e9, count)

    return make


SMALL = VitConfig(embed_dim=64, depth=1, num_heads=2)
WHAT = "gradients and states of the optimizer"


@pytest.mark.slow
def test_7b_on_a_cpu(setting):
    s = setting(CPU, layers=32, vit=VitConfig(), quantization="4bit")
    needs = estimate(s, "load", "chat")
    assert needs["load"].parts["LLM (4bit)"] == pytest.approx(4.3e9, rel=0.01)
    assert needs["chat"].memory / 1e9 == pytest.approx(8.2, rel=0.05)  # measured with shorter answers: 8.1
    assert fits(s, needs["chat"])
    whole = setting(CPU, layers=32, vit=VitConfig(), llm_dtype="bf16")
    (need,) = estimate(whole, "load").values()
    assert need.parts["LLM (bfloat16)"] == pytest.approx(13.5e9, rel=0.01)


@pytest.mark.slow
def test_an_accelerator_reads_all_weights_for_a_token(setting):
    need = estimate(setting(H100), "chat")["chat"]
    assert "Python and its libraries" not in need.parts
    assert need.per_token == pytest.approx(need.parts["LLM (bfloat16)"] / 3350e9)


@pytest.mark.slow
def test_training_grows_with_the_batch_and_shrinks_with_checkpointing(setting):
    def activations(batch: int, **model) -> float:
        return estimate(setting(H100, RunConfig(batch_size_train=batch), **model), "train")["train"].parts[
            "activations"
        ]

    small, large = activations(4), activations(8)
    assert 1.8 * small < large < 2.2 * small and activations(8, use_grad_checkpoint=True) < 0.5 * large


@pytest.mark.slow
def test_more_layers_are_estimated_from_a_few(setting):
    def activations(layers: int) -> float:
        return estimate(setting(H100, layers=layers), "train")["train"].parts["activations"]

    few, some, more = (activations(layers) for layers in (4, 6, 8))
    assert more - some == pytest.approx(some - few, rel=0.01)


@pytest.mark.slow
def test_training_that_is_shared_out(setting):
    def weights(strategy: str, count: int) -> float:
        s = setting(H100, RunConfig(batch_size_train=1, strategy=strategy), count)
        return estimate(s, "train")["train"].parts["LLM (bfloat16)"]

    assert weights("fsdp", 8) == weights("fsdp", 1) / 8 and weights("ddp", 8) == weights("ddp", 1)


@pytest.mark.slow
def test_adapters_and_a_trained_llm_take_more(setting):
    run = RunConfig(batch_size_train=1)
    plain, lora = (estimate(setting(H100, run, lora_r=rank), "train")["train"].parts[WHAT] for rank in (0, 64))
    assert lora - plain == pytest.approx(12 * 4 * 2 * 64 * (4096 + 4096))  # layers, q_proj and v_proj
    s = setting(H100, run, unfreeze=["llm"])
    trained = estimate(s, "train")["train"].parts[WHAT]
    assert trained - plain == pytest.approx(12 * sum(p.numel() for p in s.llm.parameters()))


@pytest.mark.slow
def test_a_device_map_gives_each_device_its_share_of_layers_in_one_process(setting):
    run = RunConfig(batch_size_train=1, strategy="fsdp")
    alone = estimate(setting(H100, run, layers=2), "train")["train"]
    shared = estimate(setting(H100, run, 2, layers=4, device_map="auto"), "train", "chat")
    whole = setting(H100, run, layers=4)
    assert shared["train"].parts["activations"] == pytest.approx(alone.parts["activations"])
    weights = estimate(whole, "train", "chat")
    assert shared["train"].parts["LLM (bfloat16)"] == weights["train"].parts["LLM (bfloat16)"] / 2  # once shared
    assert shared["train"].parts[WHAT] == weights["train"].parts[WHAT]
    assert shared["chat"].per_token == weights["chat"].per_token  # the devices take turns


def test_devices_are_whole():
    for name, device in known_devices().items():
        assert device.memory > 1e10 and device.bandwidth > 1e11 and device.flops > 1e13, name
