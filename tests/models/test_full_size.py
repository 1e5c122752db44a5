"""The four official models at full size, with no weights: every key and shape recorded from the original is used."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.models import minigpt4
from minigpt4.models.checkpoint import file_name
from minigpt4.models.llm import DTYPES
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.vision.eva import build_vit
from minigpt4.models.vision.eva_qformer import EvaQformer
from minigpt4.models.vision.part import convert_weights
from tests.conftest import PARITY, golden_json

RECORDED = golden_json("full_size_keys")
VIT = RECORDED["eva_vit_g (visual_encoder, prefix removed; 224px; dtype after precision fp16)"]
QFORMER = next(keys for name, keys in RECORDED.items() if name.startswith("Qformer"))
POSITION_IDS = "Qformer.bert.embeddings.position_ids"  # a buffer of the original
VIT_UNUSED = ["blocks.39.attn.qkv.weight", "blocks.39.norm1.weight", "head.weight", "norm.bias", "norm.weight"]
QFORMER_UNUSED = [
    "Qformer.bert.embeddings.position_embeddings.weight",
    POSITION_IDS,
    "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.bert.encoder.layer.0.intermediate.dense.weight",
    "Qformer.bert.encoder.layer.11.output.dense.weight",
    "Qformer.cls.predictions.bias",
    "t5_proj.bias",
    "t5_proj.weight",
]
QUERIES = ModelConfig()
PATCHES = ModelConfig(has_qformer=False)
V2 = replace(PATCHES, image_size=448, lora_r=64)
SIZES = {  # config, width, layers and MLP width of the LLM
    "minigpt4_vicuna0_7b": (QUERIES, 4096, 32, 11008),
    "minigpt4_vicuna0_13b": (QUERIES, 5120, 40, 13824),
    "minigpt4_llama2_7b": (PATCHES, 4096, 32, 11008),
    "minigpt_v2_llama2_7b": (V2, 4096, 32, 11008),
}


def blank(shape: list[int]) -> Tensor:
    """Zeros of any size in two bytes."""
    return torch.zeros((), dtype=torch.float16).expand(shape)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """Files with the keys of the official ones."""
    folder = tmp_path_factory.mktemp("full_size")
    vit = {key: blank(shape) for key, (shape, _) in VIT.items()} | {key: blank([1408]) for key in VIT_UNUSED}
    torch.save(vit, folder / "eva_vit_g.pth")
    qformer = QFORMER | {f"ln_vision.{key}": shape for key, shape in RECORDED["ln_vision"].items()}
    blip2 = {key: blank(shape) for key, shape in (qformer | {key: [768] for key in QFORMER_UNUSED}).items()}
    torch.save({"model": blip2}, folder / "blip2.pth")
    for name in SIZES:
        saved = RECORDED[name]["saved_checkpoint_model_keys"]
        torch.save({"model": {key: blank(shape) for key, (shape, _) in saved.items()}}, folder / f"{name}.pth")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def build(files, monkeypatch):
    """Builds a model from a checkpoint; the LLM has no memory but for a few rows of its embedding."""

    def make(name: str, checkpoint: str) -> MiniGPT4:
        config, width, layers, mlp = SIZES[name]
        with torch.device("meta"):
            sizes = LlamaConfig(
                hidden_size=width, num_hidden_layers=layers, intermediate_size=mlp, num_attention_heads=width // 128
            )
            llm = LlamaForCausalLM(sizes).requires_grad_(False)
        llm.set_input_embeddings(nn.Embedding(8, width).requires_grad_(False))
        paths = {"vit_model": files["eva_vit_g"], "q_former_model": files["blip2"], "ckpt": files[checkpoint]}
        paths["llama_model"] = PARITY / "tokenizer"
        monkeypatch.setattr(minigpt4, "preflight", lambda *_: {f"model.{key}": path for key, path in paths.items()})
        monkeypatch.setattr(minigpt4, "load_llm", lambda *_: llm)
        return MiniGPT4.from_config(Config(model=config))

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_every_recorded_key_is_used_or_known_to_be_unused(name, build, caplog):
    caplog.set_level("INFO")
    model = build(name, name)
    trainable = {file_name(n): list(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == RECORDED[name]["trainable_parameters"]
    without_words = RECORDED[name]["n_total"] - (32000 - 8) * model.projection.out_features
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == RECORDED[name]["n_trainable"]
    assert sum(p.numel() for p in model.parameters()) == without_words

    vit = {
        key: [list(p.shape), str(p.dtype).removeprefix("torch.")] for key, p in model.vision.vit.state_dict().items()
    }
    positions = RECORDED["v2_pos_embed_448"] if model.vision.vit.patch_embed.grid_size == (32, 32) else [1, 257, 1408]
    assert vit == VIT | {"pos_embed": [positions, "float32"]}
    assert f"eva_vit_g.pth, unused: {sorted(VIT_UNUSED)}" in caplog.text
    assert {key: list(p.shape) for key, p in model.vision.norm.state_dict().items()} == RECORDED["ln_vision"]
    if isinstance(model.vision, EvaQformer):
        named = {file_name(f"vision.{key}"): p for key, p in model.vision.state_dict().items()}
        state = {key: p for key, p in named.items() if key.startswith(("Qformer.", "query_tokens"))}
        recorded = {key: shape for key, shape in QFORMER.items() if key != POSITION_IDS}
        assert {key: list(p.shape) for key, p in state.items()} == recorded
        assert f"blip2.pth, unused: {sorted(QFORMER_UNUSED)}" in caplog.text
    towers = [t for n, t in model.named_parameters() if not n.startswith("llm.")] + list(model.vision.vit.buffers())
    assert not any(t.is_meta for t in towers)


@pytest.mark.slow
def test_dtypes_of_other_precisions():
    half = {key for key, (_, dtype) in VIT.items() if dtype == "float16"}
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with torch.device("meta"):
            vit = build_vit(QUERIES.vit, 224)
        convert_weights(vit, DTYPES[precision])
        assert {key: p.dtype for key, p in vit.named_parameters()} == {
            key: dtype if key in half else torch.float32 for key in VIT
        }


@pytest.mark.slow
def test_a_7b_projection_does_not_fit_a_13b_llm(build):
    words = r"was trained with an LLM of width 4096 \(7B\); this LLM has 5120 \(13B\). Change the LLM or the checkpoint"
    with pytest.raises(UserError, match=r"\[4096, 768\], this model has \[5120, 768\]: it " + words):
        build("minigpt4_vicuna0_13b", "minigpt4_vicuna0_7b")
