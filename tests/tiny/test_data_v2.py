"""What `minigpt4 tiny data` writes for MiniGPT-v2's recipe is what readers and benchmarks of its formats read."""

import json
from pathlib import Path

import pytest

from minigpt4.config.loading import load_config
from minigpt4.config.schema import EvaluationDatasetConfig
from minigpt4.datasets.builders.image_text import build_dataset
from minigpt4.evaluation.benchmarks.gqa import gqa
from minigpt4.evaluation.benchmarks.refcoco import refcoco
from minigpt4.evaluation.benchmarks.vizwiz import vizwiz
from minigpt4.evaluation.benchmarks.vqav2 import vqav2
from minigpt4.evaluation.source import Source
from minigpt4.tiny.data import write_all
from minigpt4.tiny.world import SIDE, Look, box
from tests.config import ROOT

pytestmark = pytest.mark.slow
SCALE = 0.01  # 40 scenes to train with, 3 to test with


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_all(folder, seed=0, scale=SCALE)
    return folder


@pytest.fixture(scope="module")
def samples(data) -> dict[str, list[tuple[str, str]]]:
    """{data set of the tiny recipe: (question, answer) of each of its samples}, as validation would read them."""
    config = load_config(ROOT / "train_configs" / "minigptv2_tiny_finetune.yaml")
    found = {}
    for name, block in config.datasets.items():
        for key in ("storage", "images"):
            if path := getattr(block.build_info, key):
                setattr(block.build_info, key, path.replace("dataset/tiny", str(data)))
        dataset = build_dataset(name, block, "train", exact=True)
        turns = [dataset[i]["conversation"].turns[0] for i in range(len(dataset))]
        found[name] = [(turn.words.strip(), turn.answer) for turn in turns]
    return found


def test_the_recipe_s_readers_find_every_sample(samples, data):
    scenes = len(json.loads((data / "v2" / "grounded" / "groundedcaption.json").read_text()))
    assert scenes == 40
    digits = len(samples["refcoco"])
    assert scenes <= digits <= 3 * scenes
    assert {name: len(samples[name]) for name in ("refcocop", "refcocog", "invrefcocog")} == {
        "refcocop": digits,
        "refcocog": digits,
        "invrefcocog": digits,
    }
    assert len(samples["flickr_ObjectToPhrase"]) == digits + scenes
    assert len(samples["flickr_grounded_caption"]) == scenes
    assert len(samples["coco_vqa"]) == 8 * scenes


def test_what_is_somewhere_is_there_the_other_way_round(samples):
    where = {(question, answer) for question, answer in samples["refcocog"]}
    what = {(answer, question) for question, answer in samples["invrefcocog"]}
    assert {(q.removeprefix("[refer] "), a) for q, a in where} == {(a, q.removeprefix("[identify] ")) for a, q in what}
    expression, place = samples["refcocog"][0]
    where, _, what = expression.removeprefix("[refer] the digit ").partition(", ")
    assert samples["flickr_grounded_caption"][0][1].startswith(f"<p>{what}</p> {place} {where} and ")
    assert samples["flickr_ObjectToPhrase"][0][1] == f"<p>{what.removeprefix('a ')}</p> {place}"


def test_questions_have_short_answers(samples):
    assert all(question.startswith("[vqa] ") for question, _ in samples["coco_vqa"])
    assert {answer for _, answer in samples["coco_vqa"]} >= {"yes", "no", "one"}
    assert all(len(answer.split()) <= 3 for _, answer in samples["coco_vqa"])


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_benchmarks_of_references_read_the_test_part(data, name):
    block = EvaluationDatasetConfig(
        eval_file_path=str(data / "v2" / "test"), img_path=str(data / "v2" / "images"), benchmark=name
    )
    source = Source(name, block, "evaluation_datasets.{name}.{key}")
    questions = refcoco(source).questions
    seen = {row["image_id"] for row in json.loads((data / "v2" / "grounded" / "groundedcaption.json").read_text())}
    shown = {file.stem for question in questions for file in question.pictures}
    assert len(shown) == 3 and not shown & seen  # of other handwriting
    assert all(file.is_file() for question in questions for file in question.pictures)


@pytest.mark.parametrize(
    ("benchmark", "file", "count"), [(vqav2, "vqav2", 8 * 3), (gqa, "gqa.json", 8 * 3), (vizwiz, "vizwiz.json", 3)]
)
def test_benchmarks_of_questions_read_the_test_part(benchmark, file, count, data):
    block = EvaluationDatasetConfig(
        eval_file_path=str(data / "v2" / "test" / file), img_path=str(data / "v2" / "images")
    )
    questions = benchmark(Source(benchmark.__name__, block, "evaluation_datasets.{name}.{key}")).questions
    assert len(questions) == count
    assert benchmark is gqa or all(len(question.reference) == 10 for question in questions)
    assert all(question.reference and question.pictures[0].is_file() for question in questions)


def test_a_box_is_the_drawn_square_within_the_picture():
    assert box(Look(0, (0.5, 0.5), 0.25)) == (42, 42, 28, 28)
    assert box(Look(0, (0.1, 0.95), 0.25)) == (0, 92, 25, SIDE - 92)
