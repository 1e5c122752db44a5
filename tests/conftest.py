"""Fixtures: the golden data of the original, and a model of its sizes built through the product's own loading code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.common.config import Config, ModelConfig, QformerConfig, VitConfig
from minigpt4.models.minigpt4 import MiniGPT4

PARITY = Path(__file__).parent / "fixtures" / "parity"
torch.set_num_threads(2)


def golden(name: str) -> dict[str, Tensor]:
    return load_file(PARITY / f"{name}.safetensors")


def golden_json(name: str) -> dict:
    return json.loads((PARITY / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def parity_llm(tmp_path_factory) -> Path:
    """A Hugging Face folder with the golden LLaMA and tokenizer."""
    folder = tmp_path_factory.mktemp("llm")
    sizes = golden_json("config")["llama_configs"]["vicuna0"]
    known = LlamaConfig().to_dict()
    llm = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in sizes.items() if k in known and k != "dtype"}))
    weights = {k: v.float() for k, v in load_file(PARITY / "weights" / "llama.safetensors").items()}
    llm.load_state_dict({k: v for k, v in weights.items() if not k.endswith("inv_freq")})
    llm.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes((PARITY / "tokenizer" / "tokenizer.model").read_bytes())
    return folder


@pytest.fixture(scope="session")
def parity_config(parity_llm) -> ModelConfig:
    return ModelConfig(
        image_size=56,
        vit=VitConfig(patch_size=14, embed_dim=96, depth=3, num_heads=4),
        vit_precision="fp32",
        vit_model=str(PARITY / "weights" / "eva_vit.safetensors"),
        qformer=QformerConfig(64, 4, 4, 160),
        num_query_token=8,
        q_former_model=str(PARITY / "weights" / "blip2_qformer.safetensors"),
        llama_model=str(parity_llm),
        ckpt=str(PARITY / "weights" / "ckpt_vicuna0.safetensors"),
    )


@pytest.fixture(scope="session")
def parity_model(parity_config) -> MiniGPT4:
    return MiniGPT4.from_config(Config(model=parity_config)).eval()
