"""Training: prompts, inputs, labels, losses and gradients of the recorded cases, and of the original's mistakes."""

import random
from dataclasses import replace

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.conversation.prompter import IGNORE, IMAGE_PLACEHOLDER, IMAGE_ROW, read_prompts
from minigpt4.datasets.loading import collate, tensors_of
from minigpt4.models.llm import embedding_of
from minigpt4.models.splice import pad, splice
from tests.conftest import assert_recorded, golden, golden_json
from tests.models.parity import (
    FLAVOURS,
    PAD_PIECE,
    assert_gradients,
    assert_losses,
    batch_of,
    dialogue_of,
    ids_of,
    images_in,
    layout_of,
    learns_pad_piece,
    logits_of,
    pictures,
    verbatim,
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
WITH_INSTRUCTIONS = next(  # each about one image, in the chat template
    case
    for flavour, case in CASES
    if flavour == "v2" and "instruction_input" in (spec := SPECS[flavour, case])
    if spec["chat_template"] and spec["has_image"] and "length" not in spec
)


def assert_inputs(flavour: str, case: str, batch: dict) -> None:
    """Compares what the LLM receives, and the prompts and answers that the original pads each for itself before.

    Quirk 2: the original takes $$ for padding; an answer's loses its label, a conversation's its attention.
    """
    data = {k.removeprefix(f"{case}."): t for k, t in golden(f"3_{flavour}").items() if k.startswith(f"{case}.")}
    conversation = "conv_q" in SPECS[flavour, case]
    ids, mask, labels = batch["ids"], batch["mask"], batch["labels"]
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
    engine, spec, samples = prepared(flavour, case)
    assert_inputs(flavour, case, batch_of(engine.prompter, samples))
    if "instruction_input" in spec:
        own = engine.prompter
        for sample, prompt in zip(samples, spec["prompts_passed_to_prompt_wrap"], strict=True):
            assert own.turns(sample)[0] == own.pair(own.parse(prompt, sample.pictures), "")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "case"), CASES)
def test_loss_and_gradients(flavour, case, prepared):
    engine, spec, samples = prepared(flavour, case)
    model = engine.model
    model.zero_grad()
    loss = model(batch_of(engine.prompter, samples))["loss"]
    loss.backward()
    trained = ("projection", "lora_")
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
    engine, _, samples = prepared(flavour, case)
    logits, labels = logits_of(engine.model, batch_of(engine.prompter, samples))
    assert_losses(f"3_{flavour}", case, logits, labels)


EMBEDDED = [(f, c) for f, c in CASES if f"{c}.logits_last" in golden(f"3_{f}")]


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "case"), EMBEDDED)
def test_embeddings_and_logits(flavour, case, prepared):
    """In the original's layout: its last logits are those of padding in all rows but the longest."""
    engine, _, samples = prepared(flavour, case)
    model, data, file = engine.model, golden(f"3_{flavour}"), f"3_{flavour}"
    images = model.encode_img(batch_of(engine.prompter, samples)["pictures"])
    assert_recorded(file, "image embeddings of a batch", images, data[f"{case}.img_embeds"], 2e-5)
    embeds = splice(layout_of(data[f"{case}.inputs_layout"]), images, embedding_of(model.llm))
    if f"{case}.inputs_embeds" in data:
        assert_recorded(file, "embeddings of a batch", embeds, data[f"{case}.inputs_embeds"], 2e-5)
    attention = data[f"{case}.attention_mask"].long()
    logits = model.llm(inputs_embeds=embeds, attention_mask=attention).logits[:, -1]
    assert_recorded(file, "last logits", logits, data[f"{case}.logits_last"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "case"), FIXED)
def test_the_originals_losses_where_it_takes_text_for_padding(flavour, case, prepared):
    """Quirk 2, both values: with its mistake ours are the recorded ones (without it others: see above)."""
    engine, _, samples = prepared(flavour, case)
    model, batch = engine.model, batch_of(engine.prompter, samples)
    ids, mask, labels = batch["ids"], batch["mask"], batch["labels"]
    if samples[0].kind == "dialogue":
        mask = mask.masked_fill(ids == PAD_PIECE, 0)
    else:
        labels = labels.masked_fill(labels == PAD_PIECE, IGNORE)
    embeds = model.embed(ids, model.encode_img(batch["pictures"]))
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    logits = model.llm(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    loss = assert_losses(f"3_{flavour}", case, logits[:, :-1], labels[:, 1:], " (quirk 2)")
    model.zero_grad()
    loss.backward()
    assert_gradients(model, f"3_{flavour}", case, " (quirk 2)")


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "case"), CUT)
def test_the_originals_losses_where_it_cuts_a_prompt(flavour, case, prepared):
    """Quirk 9, both values: with prompts cut to max_context_len ours are the recorded losses, without it others."""
    engine, spec, samples = prepared(flavour, case)
    whole = batch_of(engine.prompter, samples)
    pairs = [engine.prompter.turns(sample) for sample in samples]
    cut = collate([tensors_of(prompt[: 1 + spec["max_context_len"]] + answer) for prompt, answer in pairs])
    assert_inputs(flavour, case, cut)
    logits, labels = logits_of(engine.model, cut | {"pictures": whole["pictures"]})
    assert_losses(f"3_{flavour}", case, logits, labels, " (quirk 9)")
    assert abs(engine.model(whole)["loss"].item() - spec["loss"]) > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "case"), TOO_FEW_IMAGES)
def test_the_originals_losses_where_images_are_too_few(flavour, case, prepared):
    """Quirk 8, both values: a placeholder without an image is nothing to the original, here it is an error."""
    spec = SPECS[flavour, case]
    with pytest.raises(UserError, match="the prompt holds 2 <ImageHere> but 1 images"):
        prepared(flavour, case)
    engine, *_ = prepared("v2", WITH_INSTRUCTIONS)
    own = replace(engine.prompter, **{name: spec[name] for name in ("max_txt_len", "end_sym")})
    examples, left = [], iter(pictures(flavour))
    for prompt, answer in zip(spec["prompts_passed_to_prompt_wrap"], spec["answer"], strict=True):
        first, *others = prompt.split(IMAGE_PLACEHOLDER, maxsplit=2)
        shown, learned = own.pair(verbatim(own, f"{first}{IMAGE_PLACEHOLDER}{others[0]}", left), answer)
        texts = [pair for text in others[1:] for pair in own.prompt([text])]  # each encoded by itself
        examples.append(tensors_of(shown + texts + learned))
    batch = collate(examples)
    assert_inputs(flavour, case, batch)
    logits, labels = logits_of(engine.model, batch | {"pictures": pictures(flavour)[: len(examples)]})
    assert_losses(f"3_{flavour}", case, logits, labels, " (quirk 8)")


LISTED = [f for f in FLAVOURS if "prompt_list" in golden_json(f"3_{f}")]


@pytest.mark.parametrize("flavour", LISTED)
def test_the_prompt_list_and_what_is_drawn_from_it(flavour, parity_engines, tmp_path):
    spec, file = golden_json(f"3_{flavour}"), tmp_path / "prompts.txt"
    file.write_text("\n".join(spec["prompt_file_lines"]))
    own = replace(parity_engines[flavour].prompter, prompts=read_prompts(str(file), spec["prompt_template"]))
    assert own.prompts == spec["prompt_list"]
    drawn = [c for c in spec["cases"].values() if isinstance(c["prompts_passed_to_prompt_wrap"], str)]
    assert drawn
    for case in drawn:
        random.seed(case["python_random_seed"])
        prompt = own.parse(case["prompts_passed_to_prompt_wrap"], [None])
        asked, _ = own.turns(Conversation([Turn([None], "a dog")], kind="caption"), random.choice)
        assert asked == own.pair(prompt, "")[0]


WRAPPED = [(f, tag) for f in FLAVOURS for tag in golden_json(f"3_{f}")["prompt_wrap"]]


@pytest.mark.parametrize(("flavour", "tag"), WRAPPED)
def test_prompts_around_images(flavour, tag, parity_engines):
    own, spec = parity_engines[flavour].prompter, golden_json(f"3_{flavour}")["prompt_wrap"][tag]
    recorded, attention = (golden(f"3_{flavour}")[f"prompt_wrap.{tag}.{part}"] for part in ("layout", "atts"))
    prompts = spec.get("prompts", IMAGE_PLACEHOLDER)  # none given, nor a list to draw from: the picture alone
    prompts = [prompts] * len(recorded) if isinstance(prompts, str) else prompts
    assert len(prompts) == len(recorded)
    for prompt, row, shown in zip(prompts, recorded, attention.bool(), strict=True):
        layout = own.layout(own.parse(prompt, [None] * prompt.count(IMAGE_PLACEHOLDER)))[1:]  # without the BOS
        cut = layout[: spec.get("max_context_len")]  # quirk 9, both values: nothing cuts ours
        assert cut == layout_of(row[shown]).tolist()
        assert ("max_context_len" in spec) == (cut != layout)


@torch.inference_mode()
def test_embeddings_of_prompts_around_images(parity_engine):
    data, model, own = golden("3_vicuna0"), parity_engine.model, parity_engine.prompter
    tag = next(tag for flavour, tag in WRAPPED if flavour == "vicuna0" and f"prompt_wrap.{tag}.embeds" in data)
    prompts = golden_json("3_vicuna0")["prompt_wrap"][tag]["prompts"]
    images = model.encode_img(pictures("vicuna0")[: len(prompts)])
    ids, mask = pad([own.layout(parts)[1:] for parts in own.parse_all(prompts, images)], 0)
    assert torch.equal(mask, data[f"prompt_wrap.{tag}.atts"].long())
    embeds, kept = splice(ids, images, embedding_of(model.llm)), mask.bool()
    recorded = data[f"prompt_wrap.{tag}.embeds"]
    assert_recorded("3_vicuna0", "embeddings of prompts", embeds[kept], recorded[kept], 2e-5)


ERRORS = [(f, name) for f in FLAVOURS for name in golden_json(f"3_{f}")["errors"]]


def recorded(flavour: str, error: str) -> pytest.MarkDecorator:
    """Skips where the golden set has no such error of the original."""
    return pytest.mark.skipif((flavour, error) not in ERRORS, reason=f"the golden set has no error '{error}'")


@torch.inference_mode()
@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        pytest.param(prompt, place, marks=recorded("v2", error))
        for error, prompt, place in (
            ("prompt ends with <ImageHere> (empty last segment)", "[INST] <ImageHere>", -1),
            ("prompt starts with <ImageHere> (empty first segment)", "<ImageHere> [/INST]", 0),
        )
    ],
)
def test_an_empty_text_beside_an_image(prompt, place, prepared):
    """Quirk 3: it raises in the original, here it is legal."""
    engine, _, samples = prepared("v2", WITH_INSTRUCTIONS)
    own = replace(engine.prompter, chat_template=False)
    assert ids_of(own.prompt(own.parse(prompt, [None])))[place] == IMAGE_ROW
    for sample in samples:
        sample.turns[0].question = own.parse(prompt, sample.pictures)
    assert engine.model(batch_of(own, samples))["loss"].isfinite()


@recorded("v2", "image given, no <ImageHere> in the prompt")
def test_an_image_that_no_prompt_shows(prepared):
    """Quirk 8: an obscure error in the original, here one with both counts."""
    engine, *_ = prepared("v2", WITH_INSTRUCTIONS)
    with pytest.raises(UserError, match="the prompt holds 0 <ImageHere> but 1 images"):
        engine.prompter.parse("[INST] what? [/INST]", [pictures("v2")[0]])


@recorded("v2", "chat_template with no instruction at all")
def test_no_instruction_under_a_chat_template(prepared):
    """It raises in the original; here the image alone is the prompt, as in stage 1."""
    engine, _, (sample, *_) = prepared("v2", WITH_INSTRUCTIONS)
    own, (answer,) = engine.prompter, [turn.answer for turn in sample.turns]
    assert own.chat_template
    caption = own.example(Conversation([Turn(sample.pictures, answer)], kind="caption"))
    assert ids_of(caption) == [1, *[IMAGE_ROW] * own.rows, *ids_of(own.answer(answer))]


@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "raising"), [error for error in ERRORS if error[1].startswith("conversation")])
def test_conversations_train_models_that_the_originals_cannot(flavour, raising, parity_engines):
    """Quirk 7: the original's MiniGPT-4 class has no prompt template."""
    engine = parity_engines[flavour]
    spec = next(spec for (of, _), spec in SPECS.items() if of == "v2" and "conv_q" in spec)
    texts = zip(spec["conv_q"], spec["conv_a"], spec["connect_sym"], pictures(flavour), strict=False)
    samples = [dialogue_of(engine.prompter, q.split(sym), a.split(sym), [own]) for q, a, sym, own in texts]
    assert engine.model(batch_of(engine.prompter, samples))["loss"].isfinite()
