"""Dialogues about images: what the LLM reads of them, and the recorded chats."""

import pytest
import torch
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation
from minigpt4.inference.chat import Chat
from tests.conftest import assert_recorded, golden, golden_json
from tests.models.parity import FLAVOURS, layout_of, pictures, turns_of

CONTEXTS = [
    (flavour, tag)
    for flavour in FLAVOURS
    for tag, spec in golden_json(f"3_{flavour}")["get_context_emb"].items()
    if "prompt" in spec
]


@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "tag"), CONTEXTS)
def test_dialogues_with_images(flavour, tag, parity_engines):
    model, own = parity_engines[flavour].model, parity_engines[flavour].prompter
    spec = golden_json(f"3_{flavour}")["get_context_emb"][tag]
    parts = own.read(Conversation(turns_of(spec["messages"])))
    assert own.text(parts) == spec["prompt"]
    layout = own.layout(parts)
    assert layout == layout_of(golden(f"3_{flavour}")[f"context.{tag}.layout"]).flatten().tolist()
    recorded = golden(f"3_{flavour}").get(f"context.{tag}.embeds")
    if recorded is not None:
        images = model.encode_img(pictures(flavour)[: spec["n_images"]])
        embeds = model.embed(torch.tensor([layout]), images)
        assert_recorded(f"3_{flavour}", "embeddings of a dialogue", embeds, recorded, 2e-5)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_another_number_of_images_than_places(flavour, parity_engines):
    spec = golden_json(f"3_{flavour}")["get_context_emb"]
    assert spec["n_images mismatch"]["type"] == "AssertionError"
    with pytest.raises(UserError, match="prompts hold 1 <ImageHere> but 2 images"):
        prompt = next(case["prompt"] for case in spec.values() if case.get("n_images") == 1)
        parity_engines[flavour].generate(pictures(flavour)[:2], [prompt])


CHATS = [
    (flavour, tag)
    for flavour in FLAVOURS
    for tag, turns in golden_json(f"3_{flavour}")["chat"].items()
    if isinstance(turns, list) and "max_length" not in turns[0]["kwargs"]  # which cuts off BOS and image: quirk 9
]


@pytest.mark.parametrize(("flavour", "tag"), CHATS)
def test_chats_read_and_give_the_recorded_tokens(flavour, tag, parity_engines, generations):
    engine = parity_engines[flavour]
    engine.processor = lambda _: pictures(flavour)[0]
    chat = Chat(engine)
    chat.upload_img(Image.new("RGB", (4, 4)))
    for i, turn in enumerate(golden_json(f"3_{flavour}")["chat"][tag]):
        options = {"repetition_penalty": 1.05, "do_sample": True} | turn["kwargs"]
        assert chat.answer(turn["question"], **options) == turn["answer"]
        recorded = turns_of(turn["messages"])
        assert [(t.words, t.answer) for t in chat.turns] == [(t.words, t.answer) for t in recorded]
        read = layout_of(golden(f"3_{flavour}")[f"chat.{tag}.turn{i}.inputs_layout"])
        assert torch.equal(generations[i].layout, read)
        assert generations[i].tokens == [row[1:] for row in turn["ids"]]  # without its BOS
