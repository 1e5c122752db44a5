"""The towers: EVA-ViT, ln_vision, the Q-Former, and what `encode_img` makes of a picture."""

import pytest
import torch
from torch import nn
from transformers import Blip2QFormerModel

from minigpt4.models.checkpoint import file_name
from minigpt4.models.vision.eva import build_vit, load_vit_weights
from minigpt4.models.vision.eva_qformer import build_qformer, load_qformer_weights
from minigpt4.models.vision.part import convert_weights
from tests.conftest import OTHER_SIZE, PARITY, QFORMER, QUERIES, SIZE, SIZES, VIT, assert_recorded, golden, golden_json
from tests.models.parity import FLAVOURS, image, pictures

VIT_FILE = PARITY / "weights" / "eva_vit.safetensors"


def vit(image_size: int) -> nn.Module:
    model = build_vit(VIT, image_size).eval()
    load_vit_weights(model, VIT_FILE)
    return model


def outputs_of(modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Will hold what each module returns when the model runs."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        return lambda module, inputs, output: outputs.update({name: output})

    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    return outputs


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("size", "prefix"), [(SIZE, ""), (OTHER_SIZE, "alt.")])
def test_vit_tokens(size, prefix):
    data = golden("1_vit")
    tokens = vit(size)(image(data[f"{prefix}image_int8"]))
    assert_recorded("1_vit", f"tokens, {size} px", tokens, data[f"{prefix}tokens"], 1e-4)


@torch.inference_mode()
def test_vit_patches_and_blocks():
    data, model = golden("1_vit"), vit(SIZE)
    blocks = {f"block_out.{i}": block for i, block in enumerate(model.blocks)}
    outputs = outputs_of({"patch_embed": model.patch_embed, **blocks})
    model(image(data["image_int8"]))
    assert outputs.keys() == {name for name in data if name.startswith(("patch_embed", "block_out"))}
    for name, output in outputs.items():
        assert_recorded("1_vit", name.split(".")[0], output, data[name], 1e-4)


@torch.inference_mode()
def test_vit_layer_norm_eps():
    data, model = golden("1_vit"), vit(SIZE)
    for name, parameter in model.named_parameters():
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed.proj"):
            parameter.mul_(1e-3)
    tokens = model(image(data["image_int8"]))
    assert_recorded("1_vit", "tokens, LayerNorm eps probe", tokens, data["eps_probe.tokens"], 1e-4)


RESIZED = [(OTHER_SIZE, "alt.pos_embed"), *((size, f"pos_embed_at_{size}") for size in SIZES["img_more"])]


@pytest.mark.parametrize(("size", "name"), RESIZED)
def test_vit_position_embeddings_of_other_sizes(size, name):
    assert_recorded("1_vit", "position embeddings", vit(size).pos_embed.detach(), golden("1_vit")[name], 1e-5)


def test_vit_keys_of_the_file(caplog):
    caplog.set_level("INFO")
    spec = golden_json("1_vit")
    assert {k: list(t.shape) for k, t in vit(SIZE).state_dict().items()} == spec["state_dict"]
    assert f"unused: {sorted(spec['load_state_dict_strict_false']['unexpected_ignored'])}" in caplog.text


def test_vit_half_precision_keeps_the_originals_dtypes():
    model = vit(SIZE)
    convert_weights(model, torch.float16)
    recorded = golden_json("1_vit")["dtypes_after_precision_fp16"]
    assert {n: str(p.dtype) for n, p in model.named_parameters()} == recorded


@pytest.fixture
def qformer() -> tuple[Blip2QFormerModel, nn.Parameter, nn.LayerNorm]:
    model, queries = build_qformer(QFORMER, QUERIES, VIT.embed_dim)
    ln_vision = nn.LayerNorm(VIT.embed_dim)
    load_qformer_weights(model.eval(), queries, ln_vision, PARITY / "weights" / "blip2_qformer.safetensors")
    return model, queries, ln_vision


@torch.inference_mode()
def test_ln_vision(qformer):
    data = golden("2_qformer")
    assert_recorded("2_qformer", "ln_vision", qformer[2](data["ln_vision.in"]), data["ln_vision.out"], 2e-5)


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["", "eps_probe.", "masked."])
def test_qformer_output(qformer, prefix):
    """Also with an encoder mask, which MiniGPT-4 has no use for."""
    data, (model, queries, _) = golden("2_qformer"), qformer
    assert torch.equal(queries, data["query_tokens"])
    output = model(
        query_embeds=queries.expand(len(data["image_tokens"]), -1, -1) * (1e-5 if prefix == "eps_probe." else 1),
        encoder_hidden_states=data["image_tokens"],
        encoder_attention_mask=data["masked.encoder_attention_mask"].long() if prefix == "masked." else None,
    ).last_hidden_state
    name = f"{prefix}last_hidden_state"
    assert_recorded("2_qformer", name, output, data[name], 2e-5)


@torch.inference_mode()
def test_qformer_layers(qformer):
    data, (model, queries, _) = golden("2_qformer"), qformer
    layers = {f"hidden_states.{i + 1}": layer for i, layer in enumerate(model.encoder.layer)}
    outputs = outputs_of({"hidden_states.0": model.layernorm, **layers})
    model(query_embeds=queries.expand(len(data["image_tokens"]), -1, -1), encoder_hidden_states=data["image_tokens"])
    assert outputs.keys() == {name for name in data if name.startswith("hidden_states")}
    for name, output in outputs.items():
        assert_recorded("2_qformer", "hidden_states", output, data[name], 2e-5)


def test_qformer_keys(qformer):
    state, recorded = qformer[0].state_dict(), golden_json("2_qformer")["state_dict"]
    shapes = {file_name(f"vision.qformer.{k}").removeprefix("Qformer."): list(t.shape) for k, t in state.items()}
    assert shapes == {k: shape for k, shape in recorded.items() if not k.endswith("position_ids")}  # a buffer


@torch.inference_mode()
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_encode_img(flavour, parity_engines):
    model, data, images = parity_engines[flavour].model, golden(f"3_{flavour}"), pictures(flavour)[:4]
    rows, recorded = model.encode_img(images), data["encode_img.out"]
    assert_recorded(f"3_{flavour}", "encode_img", rows, recorded, 2e-5)
    assert data["encode_img.atts"].long().sum(1).tolist() == [model.vision.rows] * 4
    default = bool((model.vision.norm.weight == 1).all() and (model.vision.norm.bias == 0).all())
    assert default == golden_json(f"3_{flavour}")["ln_vision_is_default_init (weight 1, bias 0)"]  # quirk 16
