"""Processors give the original's pixels and captions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.config.schema import ProcessorConfig
from tests.conftest import PARITY, assert_recorded, golden, golden_json

SPEC = golden_json("5_processors")


@pytest.mark.parametrize("name", [n for n in golden("5_processors") if n.startswith("eval.")])
def test_images_equal_the_recorded_ones(name):
    _, image, size = name.split(".")
    picture = Image.open(PARITY / "images" / f"{image}.png").convert("RGB")
    pixels = ProcessorConfig(name="blip2_image_eval", image_size=int(size)).build()(picture)
    assert_recorded("5_processors", "pixels", pixels, golden("5_processors")[name], 1e-6)


def test_own_mean_and_std():
    spec = SPEC["custom_mean_std"]
    picture = Image.open(PARITY / "images" / f"{spec['image']}.png")
    config = ProcessorConfig("blip2_image_eval", image_size=spec["image_size"], mean=spec["mean"], std=spec["std"])
    expected = golden("5_processors")[f"eval_custom_mean_std.{spec['image_size']}"]
    torch.testing.assert_close(config.build()(picture), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("group", SPEC["blip_caption"], ids=lambda g: str(g["config"]))
def test_captions_equal_the_recorded_ones(group):
    processor = ProcessorConfig("blip_caption", **group["config"]).build()
    for case in group["cases"]:
        assert processor(case["in"]) == case["out"]


@given(st.text())
def test_captions_have_no_upper_case_and_at_most_50_words(text):
    caption = ProcessorConfig("blip_caption").build()(text)
    assert len(caption.split(" ")) <= 50
    assert not set(caption) & set('.!"()*#:;~')


def test_the_training_crop_is_random_and_can_be_switched_off():
    picture = Image.effect_noise((80, 60), 90).convert("RGB")
    crop = ProcessorConfig("blip2_image_train", image_size=56).build()
    plain = ProcessorConfig("blip2_image_train", image_size=56, random_resized_crop=False).build()
    evaluation = ProcessorConfig("blip2_image_eval", image_size=56).build()
    assert not torch.equal(crop(picture), crop(picture))
    assert torch.equal(plain(picture), evaluation(picture))


@pytest.mark.parametrize("seed", golden_json("7_v1")["train_transform"]["torch_seeds"])
def test_the_training_crop_equals_that_of_the_first_version(seed):
    spec = golden_json("7_v1")["train_transform"]
    picture = Image.open(PARITY / "images" / spec["image"])
    processor = ProcessorConfig("blip2_image_train", image_size=spec["image_size"]).build()
    torch.manual_seed(seed)
    assert_recorded(
        "7_v1", "pixels of the training crop", processor(picture), golden("7_v1")[f"train_transform.seed{seed}"], 1e-6
    )


def test_a_key_of_another_processor_is_refused():
    with pytest.raises(UserError, match="processor blip2_image_eval: .*max_words"):
        ProcessorConfig("blip2_image_eval", max_words=3).build()


def test_defaults_are_the_originals():
    image, caption = (ProcessorConfig(name).build() for name in ("blip2_image_eval", "blip_caption"))
    size = SPEC["blip2_image_eval"]["default_image_size"]
    assert image(Image.new("RGB", (4, 4))).shape == (3, size, size)
    assert {name: getattr(caption, name) for name in SPEC["blip_caption_defaults"]} == SPEC["blip_caption_defaults"]
