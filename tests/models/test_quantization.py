"""An LLM in 8 or 4 bits, or with a device map: its loss is close to fp32's, it stays frozen and where it is."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from torch import nn

from minigpt4.config.loading import load_config
from minigpt4.config.schema import Config, RunConfig
from minigpt4.inference.engine import Engine
from minigpt4.inference.loading import load_prompter
from minigpt4.models.llm import pick_dtype
from minigpt4.models.minigpt4 import MiniGPT4
from tests.batches import batch_of, captioned
from tests.conftest import parity_processor

PROMPT = "###Human: <Img><ImageHere></Img> What is it? ###Assistant: "
CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "weights", "tolerance"),
    [
        ({"quantization": "8bit"}, torch.int8, 0.01),
        ({"low_resource": True}, torch.int8, 0.01),
        ({"quantization": "4bit"}, torch.uint8, 0.05),
        ({"device_map": "auto", "llm_dtype": "bf16"}, torch.bfloat16, 0.01),
    ],
)
def test_training_and_generation(options, weights, tolerance, parity_config, parity_engine):
    config = Config(model=replace(parity_config, **options), run=RunConfig(device="cpu"))
    model, prompter = MiniGPT4.from_config(config).eval().place(CPU), parity_engine.prompter
    layer = model.llm.model.layers[0].self_attn.q_proj
    assert getattr(layer, "codes", layer.weight).dtype == weights
    torch.manual_seed(0)
    pictures = torch.randn(2, 3, 56, 56)
    captions = captioned(pictures, ["a small dog", "hello there"])
    batch = batch_of(replace(prompter, prompts=[PROMPT]), captions)
    with torch.no_grad():
        expected = parity_engine.model(batch)["loss"]
    loss = model(batch)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"projection.weight", "projection.bias"}
    answers = Engine(model, prompter, parity_processor).generate(pictures, [PROMPT, PROMPT], max_new_tokens=4)
    assert len(answers) == 2 and all(answers)


@pytest.mark.slow
@pytest.mark.skipif(not has_avx512bf16(), reason="weights are packed only for CPUs with bf16 products")
def test_four_bits_train_after_they_have_answered(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    config = load_config("eval_configs/minigpt4_tiny_eval.yaml", ["model.quantization=4bit", "run.device=cpu"])
    model, prompter = MiniGPT4.from_config(config).place(CPU), load_prompter(config.model)
    batch = batch_of(replace(prompter, prompts=[PROMPT]), captioned(torch.randn(1, 3, 112, 112), ["two"]))

    def gradient():
        model.zero_grad()
        model.train()(batch)["loss"].backward()
        return model.projection.weight.grad.clone()

    before = gradient()
    Engine(model.eval(), prompter, parity_processor).generate(batch["pictures"], [PROMPT])  # as a validation does
    assert gradient().equal(before) and before.any()


@pytest.mark.slow
def test_four_bits_are_packed_to_answer_only_and_where_they_fit(monkeypatch, parity_config):
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: True)
    with_adapters = replace(parity_config, quantization="4bit", lora_r=2)  # which know bitsandbytes alone
    config = Config(model=with_adapters, run=RunConfig(device="cpu"))
    model = MiniGPT4.from_config(config).place(CPU)
    layers = [m for m in model.llm.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    model.prepare_for_inference()
    packed = {(m.out_features, m.in_features) for m in layers if m.support_avx512bf16_for_cpu}
    left = {(m.out_features, m.in_features) for m in layers} - packed
    assert all(rows % 32 == columns % 64 == 0 for rows, columns in packed)
    assert left and not any(rows % 32 == columns % 64 == 0 for rows, columns in left)


@pytest.mark.parametrize(
    ("device", "check", "dtype"),
    [
        ("cuda", lambda including_emulation=True: including_emulation, torch.float16),  # a T4
        ("cuda", lambda including_emulation=True: True, torch.bfloat16),
        ("npu", lambda: True, torch.bfloat16),
        ("mps", None, torch.float16),
        ("cpu", lambda: True, torch.float32),
    ],
)
def test_auto_dtype_is_bf16_where_the_device_has_it(device, check, dtype, monkeypatch):
    module = SimpleNamespace(is_bf16_supported=check) if check else SimpleNamespace()
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    assert pick_dtype("auto", SimpleNamespace(type=device)) == dtype
    assert pick_dtype("fp16", SimpleNamespace(type=device)) == torch.float16


@pytest.mark.parametrize("attribute", ["is_quantized", "hf_device_map"])
def test_place_moves_all_but_what_is_placed_already(attribute):
    model = MiniGPT4(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    order = list(model.state_dict())
    setattr(model.llm, attribute, {"": "cpu"})
    model.place(torch.device("meta"))
    assert [n for n, p in model.named_parameters() if not p.is_meta] == ["llm.weight", "llm.bias"]
    assert list(model.state_dict()) == order
    delattr(model.llm, attribute)
    assert all(p.is_meta for p in model.place(torch.device("meta")).parameters())
