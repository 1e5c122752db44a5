"""The bundled model that answers with boxes: what it sees of held-out scenes, and that its recipe trains."""

import json
import random

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minigpt4.config.loading import load_config
from minigpt4.evaluation.metrics.boxes import iou_of_pixels, parse_box
from minigpt4.inference.chat import Chat
from minigpt4.inference.loading import load_engine
from minigpt4.tiny.data import write_all
from minigpt4.tiny.text import expressions
from minigpt4.tiny.world import SIDE, box, render, sample_scene
from tests.config import ROOT

pytestmark = pytest.mark.slow
SCENES = 60
BLANK = Image.new("RGB", (SIDE, SIDE))


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(load_engine(load_config(ROOT / "eval_configs" / "minigptv2_tiny_eval.yaml", ["run.device=cpu"])))


@pytest.fixture(scope="module")
def asked():
    """(picture, digit, its box in pixels) of one digit of each scene, and of how many digits."""
    rng = random.Random("held-out")
    scenes = [sample_scene(rng, "test", least=2) for _ in range(SCENES)]
    return [(render(s), s.facts[0], box(s.looks[0])) for s in scenes]


def answer(chat: Chat, picture: Image.Image, question: str) -> str:
    chat.restart()
    chat.upload_img(picture)
    return chat.answer(question)


def corners(bbox):
    x, y, width, height = bbox
    return x, y, x + width, y + height


def part_found(chat, asked, shown=None) -> float:
    """Part of the digits that [refer] answers with a box which overlaps by more than half."""
    found = 0
    for picture, fact, bbox in asked:
        said = parse_box(answer(chat, shown or picture, f"[refer] the {fact.color} {fact.digit}"), SIDE, SIDE)
        found += said is not None and iou_of_pixels(said, corners(bbox)) > 0.5
    return found / len(asked)


def part_named(chat, asked, shown=None) -> float:
    """Part of the boxes whose digit, color and place [identify] names."""
    right = 0
    for picture, fact, bbox in asked:
        left, top, right_side, bottom = (int(100 * side / SIDE) for side in corners(bbox))
        question = f"[identify] {{<{left}><{top}><{right_side}><{bottom}>}}"
        right += answer(chat, shown or picture, question) in expressions("refcocog", fact)
    return right / len(asked)


def test_it_shows_where_a_digit_is(chat, asked):
    assert part_found(chat, asked) > 0.8
    assert part_found(chat, asked, BLANK) < 0.4  # a guess among five places


def test_it_names_what_is_in_a_box(chat, asked):
    assert part_named(chat, asked) > 0.75
    assert part_named(chat, asked, BLANK) < 0.1


def test_it_answers_as_before_where_no_task_is_named(chat, asked):
    right = sum(answer(chat, picture, f"What color is the {fact.digit}?") == fact.color for picture, fact, _ in asked)
    assert right / len(asked) > 0.8


def test_two_steps_of_the_recipe(minigpt4, tmp_path):
    write_all(tmp_path / "data", seed=1, scale=0.02)
    recipe = load_config(ROOT / "train_configs" / "minigptv2_tiny_finetune.yaml")
    places = [
        f"datasets.{name}.build_info.{key}={path.replace('dataset/tiny', str(tmp_path / 'data'))}"
        for name, block in recipe.datasets.items()
        for key in ("storage", "images")
        if (path := getattr(block.build_info, key))
    ]
    short = ["run.max_epoch=1", "run.iters_per_epoch=2", "run.log_freq=1", f"run.output_dir={tmp_path / 'run'}"]
    status, *_ = minigpt4("train", "--cfg-path", "minigptv2_tiny_finetune", "--options", *places, *short)
    assert status == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    assert sum("train_loss" in record for record in records) == 2
    trained = load_file(tmp_path / "run" / "checkpoint_0" / "model.safetensors")
    adapters = {name: value for name, value in trained.items() if ".lora_B." in name}
    assert len(adapters) == 7 * 3  # of all linear layers of three blocks
    assert any(torch.any(value != 0) for value in adapters.values())
    assert [name for name in trained if "lora_" not in name] == ["llama_proj.bias", "llama_proj.weight"]
