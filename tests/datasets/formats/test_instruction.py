"""The dataset of own data, from its config's block to a batch."""

import json

import pytest
import torch
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.conversation.conversation import Conversation, joined
from minigpt4.conversation.prompter import IMAGE_ROW
from tests.batches import batch_of

RECORDS = [
    {"image": "0.png", "instruction": "What?", "output": "a dog", "source": "x"},
    {"id": "b", "image": "1.png", "instruction": ["Look at <ImageHere>.", "Why?"], "output": ["yes", "so"]},
    {"images": ["0.png", "1.png"], "instruction": "Which?", "output": "the second"},
    {"id": "d", "instruction": "What is two and two?", "output": "four"},
    {"id": "e", "image": "9.png", "instruction": "What?", "output": "x"},
    {"id": "f", "image": "0.png"},
]


@pytest.fixture
def build(tmp_path):
    (tmp_path / "image").mkdir()
    for i in range(2):
        Image.new("RGB", (20, 16), (80 * i, 0, 0)).save(tmp_path / "image" / f"{i}.png")
    (tmp_path / "x.json").write_text(json.dumps(RECORDS))

    def build(name: str = "instruction", **text):
        images, words = ProcessorConfig("blip2_image_eval", image_size=28), ProcessorConfig("base_instruction", **text)
        config = DatasetConfig(
            build_info=BuildInfo(str(tmp_path / "x.json")),
            vis_processor=ProcessorsConfig(images, images),
            text_processor=ProcessorsConfig(words, words),
        )
        return registry.get_builder_class(name)(name, config).build("train")

    return build


def shown(own: Conversation) -> list[list]:
    """The questions' parts, with None in the places of pictures [3, 28, 28]."""
    assert all(picture.shape == (3, 28, 28) for picture in own.pictures)
    return [[part if isinstance(part, str) else None for part in joined(turn.question)] for turn in own.turns]


@pytest.mark.parametrize("name", ["instruction", "minigpt4_instruction", "llava_instruction"])
def test_a_record_is_a_conversation(name, build):
    dataset = build(name)
    assert len(dataset) == len(RECORDS)
    first, second = dataset[0], dataset[1]
    assert (first["files"], first["image_id"], second["image_id"]) == (["0.png"], "#0", "b")
    assert shown(first["conversation"]) == [[None, " What?"]]
    assert shown(second["conversation"]) == [["Look at ", None, "."], ["Why?"]]
    assert [[turn.answer for turn in s["conversation"].turns] for s in (first, second)] == [["a dog"], ["yes", "so"]]
    assert all(sample["conversation"].kind == "dialogue" for sample in (first, second))


def test_samples_of_different_numbers_of_pictures_make_a_batch(build, parity_prompter):
    dataset = build()
    one, two, none = (dataset[i]["conversation"] for i in (0, 2, 3))
    batch = batch_of(parity_prompter, [none, one, two])
    assert torch.equal(batch["pictures"], torch.stack([*one.pictures, *two.pictures]))
    assert batch["ids"].shape == batch["mask"].shape == batch["labels"].shape
    assert [(row == IMAGE_ROW).sum().item() for row in batch["ids"]] == [0, 8, 16]
    assert batch_of(parity_prompter, [two, two])["pictures"].shape == (4, 3, 28, 28)
    assert "pictures" not in batch_of(parity_prompter, [none, none])


def test_a_record_that_cant_be_used_is_named_when_it_is_drawn(build):
    dataset = build()
    with pytest.raises(UserError, match="x.json: record e: missing file: '.*9.png' does not exist"):
        dataset[4]
    with pytest.raises(UserError, match="x.json: record f: unknown format"):
        dataset[5]
    with pytest.raises(UserError, match="record b: placeholder mismatch: its text processor cuts off") as raised:
        build(max_words=2)[1]
    assert type(raised.value) is UserError  # a worker process can send it


def test_a_processor_rewrites_words_and_pictures_stay(build):
    assert shown(build(max_words=3)[3]["conversation"]) == [["What is two"]]
    assert shown(build(prompt="Q: ")[2]["conversation"]) == [[None, " ", None, " Q: Which?"]]
    # among the words a picture keeps its place, and what a processor writes is never one
    assert shown(build(prompt="<image> ")[1]["conversation"]) == [["<image> Look at ", None, "."], ["<image> Why?"]]
