"""Training: prompts, inputs, labels, losses and gradients of the recorded cases, and of the original's mistakes."""

import random

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER, IMAGE_ROW, Example, prompt_layout
from minigpt4.models.llm import embedding_of
from minigpt4.models.minigpt_base import read_prompts
from minigpt4.models.splice import IGNORE, pad, splice, training_batch
from tests.conftest import assert_recorded, golden, golden_json
from tests.models.parity import (
    FLAVOURS,
    PAD_PIECE,
    assert_gradients,
    assert_losses,
    ids_of,
    images_in,
    layout_of,
    learns_pad_piece,
    logits_of,
    pictures,
    samples_of,
)

SPECS = {(flavour, case): spec for flavour in FLAVOURS for case, spec in golden_json(f"3_{flavour}")["cases"].items()}
CUT = [case for case, spec in SPECS.items() if "max_context_len" in spec]  # quirk 9
TOO_FEW_IMAGES = [  # quirk 8
    case
    for case, spec in SPECS.items()
    if spec["has_image"] and "length" not in spec and "instruction_input" in spec
    if images_in(spec["instruction_input"]) > len(spec["answer"])
]
CASES = [case for case in SPECS if case not in CUT + TOO_FEW_IMAGES]
FIXED = [(flavour, case) for flavour, case in CASES if learns_pad_piece(f"3_{flavour}", case)]
PLAIN = [case for case in CASES if case not in FIXED]


def assert_inputs(flavour: str, case: str, examples: list[Example]) -> None:
    """Compares what the LLM receives, and the prompts and answers that the original pads each for itself before.

    Quirk 2: the original takes $$ for padding; an answer's loses its label, a conversation's its attention.
    """
    data = {k.removeprefix(f"{case}."): t for k, t in golden(f"3_{flavour}").items() if k.startswith(f"{case}.")}
    conversation = "conv" in case
    ids, mask, labels = training_batch(examples, bos=1)
    labels = labels if conversation else labels.masked_fill(labels == PAD_PIECE, IGNORE)
    layout, attention = layout_of(data["inputs_layout"]), data["attention_mask"].bool()
    lengths = data["input_lens"].long()
    assert torch.equal(lengths, data["cond_atts"].long().sum(1))
    for row, kept in enumerate(mask.bool()):
        shown = attention[row] | (layout[row] == PAD_PIECE) & (torch.arange(layout.shape[1]) < kept.sum())
        assert torch.equal(ids[row][kept], layout[row][shown])
        assert torch.equal(labels[row][kept], data["targets"].long()[row][shown])

        end = lengths[row] + 1  # of the prompt, after the BOS
        answer = ids[row][kept][end:]
        assert torch.equal(ids[row][1:end], layout_of(data["cond_layout"][row])[: lengths[row]])
        assert torch.equal(answer, layout_of(data["regress_layout"][row])[: len(answer)])
        assert torch.equal(labels[row][kept][end:], data["part_targets"].long()[row][: len(answer)])
        not_shown = (answer == PAD_PIECE).sum() if conversation else 0
        assert data["regress_atts"][row].sum() == len(answer) - not_shown


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "case"), CASES)
def test_prompts_inputs_and_labels(flavour, case, prepared):
    model, spec, samples = prepared(flavour, case)
    assert_inputs(flavour, case, model._examples(samples))
    if "instruction_input" in spec:
        assert model._prompts(samples) == spec["prompts_passed_to_prompt_wrap"]


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "case"), CASES)
def test_loss_and_gradients(flavour, case, prepared):
    model, spec, samples = prepared(flavour, case)
    model.zero_grad()
    loss = model(samples)["loss"]
    loss.backward()
    trained = ("llama_proj", "lora_")
    assert all(p.grad is None for n, p in model.named_parameters() if not any(t in n for t in trained))
    if (flavour, case) in FIXED:  # quirk 2, both values: the recorded one is the test's with the original's mistake
        assert abs(loss.item() - spec["loss"]) > 1e-4
    else:
        assert_recorded(f"3_{flavour}", "loss", loss.detach(), torch.tensor(spec["loss"]), 2e-5)
        assert_gradients(model, f"3_{flavour}", case)


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "case"), PLAIN)
def test_losses_of_batch_sample_and_token(flavour, case, prepared):
    model, _, samples = prepared(flavour, case)
    logits, labels = logits_of(model, model._examples(samples), model._encode_images(samples))
    assert_losses(f"3_{flavour}", case, logits, labels)


EMBEDDED = [(f, c) for f, c in CASES if f"{c}.logits_last" in golden(f"3_{f}")]


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "case"), EMBEDDED)
def test_embeddings_and_logits(flavour, case, prepared):
    """In the original's layout: its last logits are those of padding in all rows but the longest."""
    model, _, samples = prepared(flavour, case)
    data, file = golden(f"3_{flavour}"), f"3_{flavour}"
    images = model._encode_images(samples)
    assert_recorded(file, "image embeddings of a batch", images, data[f"{case}.img_embeds"], 2e-5)
    embeds = splice(layout_of(data[f"{case}.inputs_layout"]), images, embedding_of(model.llama_model))
    if f"{case}.inputs_embeds" in data:
        assert_recorded(file, "embeddings of a batch", embeds, data[f"{case}.inputs_embeds"], 2e-5)
    attention = data[f"{case}.attention_mask"].long()
    logits = model.llama_model(inputs_embeds=embeds, attention_mask=attention).logits[:, -1]
    assert_recorded(file, "last logits", logits, data[f"{case}.logits_last"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "case"), FIXED)
def test_the_originals_losses_where_it_takes_text_for_padding(flavour, case, prepared):
    """Quirk 2, both values: with its mistake ours are the recorded ones (without it others: see above)."""
    model, _, samples = prepared(flavour, case)
    ids, mask, labels = training_batch(model._examples(samples), bos=1)
    if "conv_q" in samples:
        mask = mask.masked_fill(ids == PAD_PIECE, 0)
    else:
        labels = labels.masked_fill(labels == PAD_PIECE, IGNORE)
    embeds = splice(ids, model._encode_images(samples), embedding_of(model.llama_model))
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    logits = model.llama_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    loss = assert_losses(f"3_{flavour}", case, logits[:, :-1], labels[:, 1:], " (quirk 2)")
    model.zero_grad()
    loss.backward()
    assert_gradients(model, f"3_{flavour}", case, " (quirk 2)")


@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "case"), CUT)
def test_the_originals_losses_where_it_cuts_a_prompt(flavour, case, prepared):
    """Quirk 9, both values: with prompts cut to max_context_len ours are the recorded losses, without it others."""
    model, spec, samples = prepared(flavour, case)
    pairs = zip(samples["instruction_input"], samples["answer"], strict=True)
    cut = [
        model.prompter.prompt(prompt)[: spec["max_context_len"]] + model.prompter.answer(answer)
        for prompt, answer in pairs
    ]
    assert_inputs(flavour, case, cut)
    logits, labels = logits_of(model, cut, model._encode_images(samples))
    assert_losses(f"3_{flavour}", case, logits, labels, " (quirk 9)")
    assert abs(model(samples)["loss"].item() - spec["loss"]) > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "case"), TOO_FEW_IMAGES)
def test_the_originals_losses_where_images_are_too_few(flavour, case, prepared):
    """Quirk 8, both values: a placeholder without an image is nothing to the original, here it is an error."""
    model, _, samples = prepared(flavour, case)
    counts = images_in(samples["instruction_input"]), len(samples["image"])
    with pytest.raises(UserError, match="prompts hold {} <ImageHere> but {} images".format(*counts)):
        model(samples)
    examples, own = [], model.prompter
    for prompt, answer in zip(model._prompts(samples), samples["answer"], strict=True):
        first, *others = prompt.split(IMAGE_PLACEHOLDER, maxsplit=2)
        texts = [f"{first}{IMAGE_PLACEHOLDER}{others[0]}", *others[1:]]  # each encoded by itself
        examples.append([pair for text in texts for pair in own.prompt(text)] + own.answer(answer))
    assert_inputs(flavour, case, examples)
    logits, labels = logits_of(model, examples, model._encode_images(samples))
    assert_losses(f"3_{flavour}", case, logits, labels, " (quirk 8)")


LISTED = [f for f in FLAVOURS if "prompt_list" in golden_json(f"3_{f}")]


@pytest.mark.parametrize("flavour", LISTED)
def test_the_prompt_list_and_what_is_drawn_from_it(flavour, parity_models, tmp_path, monkeypatch):
    spec, file = golden_json(f"3_{flavour}"), tmp_path / "prompts.txt"
    file.write_text("\n".join(spec["prompt_file_lines"]))
    model = parity_models[flavour]
    monkeypatch.setattr(model, "prompt_list", read_prompts(str(file), spec["prompt_template"]))
    assert model.prompt_list == spec["prompt_list"]
    monkeypatch.setattr(model, "training", True)
    drawn = [c for c in spec["cases"].values() if isinstance(c["prompts_passed_to_prompt_wrap"], str)]
    assert drawn
    for case in drawn:
        random.seed(case["python_random_seed"])
        assert model._draw_prompt() == case["prompts_passed_to_prompt_wrap"]


def test_a_samples_instruction_beats_the_prompt_list(parity_model, monkeypatch):
    listed, own = "###Human: <Img><ImageHere></Img> Describe. ###Assistant: ", "<Img><ImageHere></Img> [vqa] What? "
    monkeypatch.setattr(parity_model, "prompt_list", [listed])
    assert parity_model._prompts({"answer": ["a", "b"], "instruction_input": [own, None]}) == [own, listed]


WRAPPED = [(f, tag) for f in FLAVOURS for tag in golden_json(f"3_{f}")["prompt_wrap"]]


@pytest.mark.parametrize(("flavour", "tag"), WRAPPED)
def test_prompts_around_images(flavour, tag, parity_models, monkeypatch):
    model, spec = parity_models[flavour], golden_json(f"3_{flavour}")["prompt_wrap"][tag]
    recorded, attention = (golden(f"3_{flavour}")[f"prompt_wrap.{tag}.{part}"] for part in ("layout", "atts"))
    prompts = spec.get("prompts")
    if prompts is None:  # nor a list to draw from
        monkeypatch.setattr(model, "prompt_list", [])
        prompts = model._prompts({"answer": [""] * len(recorded)})
    prompts = [prompts] * len(recorded) if isinstance(prompts, str) else prompts
    assert len(prompts) == len(recorded)
    for prompt, row, shown in zip(prompts, recorded, attention.bool(), strict=True):
        layout = prompt_layout(prompt, model.encode_text, model.rows_per_image)
        cut = layout[: spec.get("max_context_len")]  # quirk 9, both values: nothing cuts ours
        assert cut == layout_of(row[shown]).tolist()
        assert ("max_context_len" in spec) == (cut != layout)


@torch.inference_mode()
def test_embeddings_of_prompts_around_images(parity_model):
    data = golden("3_vicuna0")
    tag = next(tag for flavour, tag in WRAPPED if flavour == "vicuna0" and f"prompt_wrap.{tag}.embeds" in data)
    prompts = golden_json("3_vicuna0")["prompt_wrap"][tag]["prompts"]
    images = parity_model.encode_img(pictures("vicuna0")[: len(prompts)])
    ids, mask = pad([prompt_layout(p, parity_model.encode_text, parity_model.rows_per_image) for p in prompts], 0)
    assert torch.equal(mask, data[f"prompt_wrap.{tag}.atts"].long())
    embeds, kept = splice(ids, images, embedding_of(parity_model.llama_model)), mask.bool()
    recorded = data[f"prompt_wrap.{tag}.embeds"]
    assert_recorded("3_vicuna0", "embeddings of prompts", embeds[kept], recorded[kept], 2e-5)


WITH_INSTRUCTIONS = next(  # each about one image, in the chat template
    case
    for flavour, case in CASES
    if flavour == "v2" and "instruction_input" in (spec := SPECS[flavour, case])
    if spec["chat_template"] and spec["has_image"] and "length" not in spec
)
CONVERSATIONS = next(case for flavour, case in CASES if flavour == "v2" and "conv_q" in SPECS[flavour, case])
ERRORS = [(f, name) for f in FLAVOURS for name in golden_json(f"3_{f}")["errors"]]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("raising", "prompt", "place"),
    [
        ("prompt ends with <ImageHere> (empty last segment)", "[INST] <ImageHere>", -1),
        ("prompt starts with <ImageHere> (empty first segment)", "<ImageHere> [/INST]", 0),
    ],
)
def test_an_empty_text_beside_an_image(raising, prompt, place, prepared):
    """Quirk 3: it raises in the original, here it is legal."""
    assert ("v2", raising) in ERRORS
    model, _, samples = prepared("v2", WITH_INSTRUCTIONS)
    assert ids_of(model.prompter.prompt(prompt))[place] == IMAGE_ROW
    assert model(samples | {"instruction_input": [prompt] * len(samples["answer"])})["loss"].isfinite()


def test_an_image_that_no_prompt_shows(prepared):
    """Quirk 8: an obscure error in the original, here one with both counts."""
    assert ("v2", "image given, no <ImageHere> in the prompt") in ERRORS
    model, _, samples = prepared("v2", WITH_INSTRUCTIONS)
    count = len(samples["answer"])
    with pytest.raises(UserError, match=f"prompts hold 0 <ImageHere> but {count} images"):
        model(samples | {"instruction_input": ["[INST] what? [/INST]"] * count})


def test_no_instruction_under_a_chat_template(prepared, monkeypatch):
    """It raises in the original; here the image alone is the prompt, as in stage 1."""
    assert ("v2", "chat_template with no instruction at all") in ERRORS
    model, _, samples = prepared("v2", WITH_INSTRUCTIONS)
    del samples["instruction_input"]
    monkeypatch.setattr(model, "chat_template", True)
    answer = ids_of(model.prompter.answer(samples["answer"][0]))
    assert ids_of(model._examples(samples)[0]) == [IMAGE_ROW] * model.rows_per_image + answer


@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "raising"), [error for error in ERRORS if error[1].startswith("conversation")])
def test_conversations_train_models_that_the_originals_cannot(flavour, raising, parity_models):
    """Quirk 7: the original's MiniGPT-4 class has no prompt template."""
    conversations = samples_of("v2", CONVERSATIONS)
    images = pictures(flavour)[: len(conversations["conv_q"])]
    assert parity_models[flavour](conversations | {"image": images})["loss"].isfinite()
