"""The dataset of own data, from its config's block to a batch."""

import json

import pytest
import torch
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.datasets.loading import collate

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


@pytest.mark.parametrize("name", ["instruction", "minigpt4_instruction", "llava_instruction"])
def test_turns_are_joined_by_a_symbol(name, build):
    dataset = build(name)
    assert len(dataset) == len(RECORDS)
    batch = collate([dataset[0], dataset[1]])
    assert batch["image"].shape == (2, 3, 28, 28)
    assert batch["image_id"] == ["#0", "b"]
    symbol = batch["connect_sym"][0]
    assert batch["conv_q"] == ["<Img><ImageHere></Img> What?", symbol.join(["Look at <ImageHere>.", "Why?"])]
    assert batch["conv_a"] == ["a dog", f"yes{symbol}so"]


def test_samples_of_different_numbers_of_pictures_make_a_batch(build):
    dataset = build()
    one, two, none = dataset[0], dataset[2], dataset[3]
    assert [None if i is None else i.shape for i in collate([none, one, two])["image"]] == [
        None,
        (3, 28, 28),
        (2, 3, 28, 28),
    ]
    assert collate([two, two])["image"].shape == (2, 2, 3, 28, 28)
    assert "image" not in collate([none, none])
    assert torch.equal(collate([one, none])["image"][0], one["image"])


def test_a_record_that_cant_be_used_is_named_when_it_is_drawn(build):
    dataset = build()
    with pytest.raises(UserError, match="x.json: record e: missing file: '.*9.png' does not exist"):
        dataset[4]
    with pytest.raises(UserError, match="x.json: record f: unknown format"):
        dataset[5]
    with pytest.raises(UserError, match="record b: placeholder mismatch: images named: 1") as raised:
        build(prompt="<ImageHere>")[1]  # of the processor, in front of each question
    assert type(raised.value) is UserError  # a worker process can send it


def test_a_processor_rewrites_questions_before_pictures_are_placed(build):
    assert build(max_words=3)[3]["conv_q"] == "What is two"
    assert build(prompt="Q: ")[2]["conv_q"] == "<Img><ImageHere></Img> <Img><ImageHere></Img> Q: Which?"
