"""The towers, the projection, the prompts and the loss give the numbers recorded from the original code."""

import pytest
import torch
from torch import nn

from minigpt4.common.config import QformerConfig, VitConfig
from minigpt4.models.llm import load_tokenizer
from minigpt4.models.qformer import build_qformer, from_original_names, load_qformer_weights, to_original_names
from minigpt4.models.splice import IGNORE, IMAGE_ROW, pad, prompt_layout, training_batch
from minigpt4.models.vision import build_vit, convert_weights, load_vit_weights
from tests.conftest import PARITY, golden, golden_json

VIT = VitConfig(patch_size=14, embed_dim=96, depth=3, num_heads=4)


def image(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() / 32


def vit(image_size: int) -> nn.Module:
    model = build_vit(VIT, image_size).eval()
    load_vit_weights(model, PARITY / "weights" / "eva_vit.safetensors")
    return model


@torch.inference_mode()
@pytest.mark.parametrize(("size", "prefix"), [(56, ""), (84, "alt.")])
def test_vit_tokens(size, prefix):
    data = golden("1_vit")
    tokens = vit(size)(image(data[f"{prefix}image_int8"]))
    torch.testing.assert_close(tokens, data[f"{prefix}tokens"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_vit_layer_norm_eps():
    data, model = golden("1_vit"), vit(56)
    for name, parameter in model.named_parameters():
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed.proj"):
            parameter.mul_(1e-3)
    torch.testing.assert_close(model(image(data["image_int8"])), data["eps_probe.tokens"], atol=1e-4, rtol=0)


def test_vit_half_precision_keeps_the_originals_dtypes():
    model = vit(56)
    convert_weights(model, torch.float16)
    recorded = golden_json("1_vit")["dtypes_after_precision_fp16"]
    assert {n: str(p.dtype) for n, p in model.named_parameters()} == recorded


@torch.inference_mode()
def test_qformer_and_ln_vision():
    data = golden("2_qformer")
    qformer, queries = build_qformer(QformerConfig(64, 4, 4, 160), 8, 96)
    ln_vision = nn.LayerNorm(96)
    load_qformer_weights(qformer.eval(), queries, ln_vision, PARITY / "weights" / "blip2_qformer.safetensors")
    torch.testing.assert_close(ln_vision(data["ln_vision.in"]), data["ln_vision.out"], atol=2e-5, rtol=0)
    tokens = data["image_tokens"]
    for scale, name in ((1, "last_hidden_state"), (1e-5, "eps_probe.last_hidden_state")):
        output = qformer(query_embeds=queries.expand(3, -1, -1) * scale, encoder_hidden_states=tokens)
        torch.testing.assert_close(output.last_hidden_state, data[name], atol=2e-5, rtol=0)


def test_qformer_names_map_back_and_forth():
    state = build_qformer(QformerConfig(64, 4, 4, 160), 8, 96)[0].state_dict()
    assert from_original_names(to_original_names(state)).keys() == state.keys()


def test_tokenizer_cases():
    tokenizer = load_tokenizer(str(PARITY / "tokenizer"))
    for case in golden_json("tokenizer_cases")["cases"]:
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]
        assert tokenizer.encode(case["text"]) == case["ids_with_bos"], case["text"]
        if "$$" not in case["text"]:  # quirk 2: there the original takes ordinary text for padding
            decoded = tokenizer.decode(case["ids_with_bos"], skip_special_tokens=True)
            assert decoded == case["decode_skip_special"], case["text"]


@torch.inference_mode()
def test_encode_img(parity_model):
    images = image(golden("3_images")["images_int8"][:4])
    expected = golden("3_vicuna0")["encode_img.out"]
    torch.testing.assert_close(parity_model.encode_img(images), expected, atol=2e-5, rtol=0)


CASES = ["stage1", "stage1_instruction_input", "stage2_prompt0", "stage2_prompt3", "stage2_truncated_8"]
PAD_PIECE = 369  # "$$", the original's padding: quirk 2, it also loses the label of a caption's own $$


@pytest.mark.parametrize("case", CASES)
def test_training_inputs_loss_and_gradients(case, parity_model):
    data, spec = golden("3_vicuna0"), golden_json("3_vicuna0")["cases"][case]
    model = parity_model
    model.max_txt_len, model.end_sym = spec["max_txt_len"], spec["end_sym"]
    samples = {"answer": spec["answer"], "image": image(golden("3_images")["images_int8"][: len(spec["answer"])])}
    prompts = spec["prompts_passed_to_prompt_wrap"]
    if prompts is not None:
        samples["instruction_input"] = [prompts] * len(spec["answer"]) if isinstance(prompts, str) else prompts

    layouts = [prompt_layout(p, model.encode_text, 8) for p in model._prompts(samples)]
    answers = [model.encode_text(a + model.end_sym)[: model.max_txt_len] for a in spec["answer"]]
    ids, mask, labels = training_batch(layouts, answers, bos=1)
    as_original = labels.masked_fill(labels == PAD_PIECE, IGNORE)
    layout, attention = data[f"{case}.inputs_layout"].long(), data[f"{case}.attention_mask"].bool()
    for row, kept in enumerate(mask.bool()):
        shown = attention[row] | (layout[row] == PAD_PIECE) & (torch.arange(layout.shape[1]) < kept.sum())
        assert ids[row][kept].tolist() == layout[row][shown].clamp(min=IMAGE_ROW).tolist()
        assert as_original[row][kept].tolist() == data[f"{case}.targets"].long()[row][shown].tolist()

    model.zero_grad()
    loss = model(samples)["loss"]
    loss.backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("llama_proj"))
    if torch.equal(as_original, labels):
        torch.testing.assert_close(loss.item(), spec["loss"], atol=2e-5, rtol=0)
        for name in spec.get("grads_recorded", []):
            expected = data[f"{case}.grad.{name}"]
            atol = 1e-4 * expected.abs().max().item()
            torch.testing.assert_close(model.get_parameter(name).grad, expected, atol=atol, rtol=0)


def test_a_samples_instruction_beats_the_prompt_list(parity_model):
    parity_model.prompt_list = ["###Human: <Img><ImageHere></Img> Describe. ###Assistant: "]
    own = "<Img><ImageHere></Img> [vqa] What? "
    assert parity_model._prompts({"answer": ["a", "b"], "instruction_input": [own, None]}) == [
        own,
        parity_model.prompt_list[0],
    ]


@torch.inference_mode()
@pytest.mark.parametrize("run", ["greedy", "greedy_single", "greedy_rep_penalty"])
def test_generation_gives_the_recorded_tokens(run, parity_model):
    spec = golden_json("3_vicuna0")["generate"]
    recorded = spec["runs"][run]
    prompts = spec["prompts"][: len(recorded["ids"])]
    images = image(golden("3_images")["images_int8"][: len(prompts)])
    expected = parity_model.llama_tokenizer.batch_decode(recorded["ids"], skip_special_tokens=True)
    answers = parity_model.generate(images, prompts, **recorded["kwargs"])
    assert answers == [parity_model.cut(text) for text in expected]


def test_generation_reads_the_recorded_inputs(parity_model):
    prompts = golden_json("3_vicuna0")["generate"]["prompts"]
    ids, mask = pad([[1, *prompt_layout(p, parity_model.encode_text, 8)] for p in prompts], 0, side="left")
    recorded = golden("3_vicuna0")["generate.greedy.inputs_layout"].long()
    assert torch.equal(ids[mask.bool()], recorded[mask.bool()].clamp(min=IMAGE_ROW))
