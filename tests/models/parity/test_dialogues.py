"""Dialogues about images: what the LLM reads of them, and the recorded chats."""

import pytest
import torch
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.prompter import prompt_layout
from minigpt4.inference.chat import Chat
from minigpt4.models.llm import embedding_of
from minigpt4.models.splice import splice
from tests.conftest import assert_recorded, golden, golden_json
from tests.conversation import turns_of
from tests.models.parity import FLAVOURS, layout_of, pictures

CONTEXTS = [
    (flavour, tag)
    for flavour in FLAVOURS
    for tag, spec in golden_json(f"3_{flavour}")["get_context_emb"].items()
    if "prompt" in spec
]


@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "tag"), CONTEXTS)
def test_dialogues_with_images(flavour, tag, parity_models):
    model, spec = parity_models[flavour], golden_json(f"3_{flavour}")["get_context_emb"][tag]
    assert model.template.prompt(turns_of(spec["messages"])) == spec["prompt"]
    layout = [1, *prompt_layout(spec["prompt"], model.encode_text, model.rows_per_image)]
    assert layout == layout_of(golden(f"3_{flavour}")[f"context.{tag}.layout"]).flatten().tolist()
    recorded = golden(f"3_{flavour}").get(f"context.{tag}.embeds")
    if recorded is not None:
        images = model.encode_img(pictures(flavour)[: spec["n_images"]])
        embeds = splice(torch.tensor([layout]), images, embedding_of(model.llama_model))
        assert_recorded(f"3_{flavour}", "embeddings of a dialogue", embeds, recorded, 2e-5)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_another_number_of_images_than_places(flavour, parity_models):
    spec = golden_json(f"3_{flavour}")["get_context_emb"]
    assert spec["n_images mismatch"]["type"] == "AssertionError"
    with pytest.raises(UserError, match="prompts hold 1 <ImageHere> but 2 images"):
        prompt = next(case["prompt"] for case in spec.values() if case.get("n_images") == 1)
        parity_models[flavour].generate(pictures(flavour)[:2], [prompt])


CHATS = [
    (flavour, tag)
    for flavour in FLAVOURS
    for tag, turns in golden_json(f"3_{flavour}")["chat"].items()
    if isinstance(turns, list) and "max_length" not in turns[0]["kwargs"]  # which cuts off BOS and image: quirk 9
]


@pytest.mark.parametrize(("flavour", "tag"), CHATS)
def test_chats_read_and_give_the_recorded_tokens(flavour, tag, parity_models, generations):
    model = parity_models[flavour]
    chat = Chat(model, lambda _: pictures(flavour)[0])
    chat.upload_img(Image.new("RGB", (4, 4)))
    for i, turn in enumerate(golden_json(f"3_{flavour}")["chat"][tag]):
        options = {"repetition_penalty": 1.05, "do_sample": True} | turn["kwargs"]
        assert chat.answer(turn["question"], **options) == turn["answer"]
        assert chat.turns == turns_of(turn["messages"])
        read = layout_of(golden(f"3_{flavour}")[f"chat.{tag}.turn{i}.inputs_layout"])
        assert torch.equal(generations[i].layout, read)
        assert generations[i].tokens == [row[1:] for row in turn["ids"]]  # without its BOS
