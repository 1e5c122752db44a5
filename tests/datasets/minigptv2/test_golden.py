"""MiniGPT-v2's 22 data sets give what the original gives: its recorded samples, their odds and their pictures."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.schema import Config
from minigpt4.datasets.builders.image_text import build_dataset
from minigpt4.processors.picture_file import open_image

FIXTURES = Path(__file__).parents[2] / "fixtures"
GOLDEN, DATA = FIXTURES / "minigptv2" / "golden", FIXTURES / "minigptv2" / "data"
RECIPE = FIXTURES / "compat" / "final__train_configs__minigptv2_finetune.yaml"
PAIRS = json.loads((GOLDEN / "outputs_set.json").read_text())
TRUNCATED = "COCO_train2014_000000000042.jpg"
TALKS = ("llava_conversation", "multitask_conversation")
NAMES = sorted(set(PAIRS) - {"cc_sbu", "laion", "cc_sbu_align"})


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def recipe() -> Config:
    """The original's own file, whose data lie in the fixtures."""
    options = []
    for name in NAMES:
        own = golden(name)["constructor_arguments"]
        storage = own.get("ann_path") or own.get("ann_paths") or own["data_dir"]
        storage = [str(DATA / path) for path in ([storage] if isinstance(storage, str) else storage)]
        options.append(f"datasets.{name}.build_info.storage=[{','.join(storage)}]")
        if "vis_root" in own:
            options.append(f"datasets.{name}.build_info.images={DATA / own['vis_root']}")
    return load_config(RECIPE, options)


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def dataset(name, recipe):
    return build_dataset(name, recipe.datasets[name], "train")


def usable(dataset) -> list[int]:
    """All samples, but for those of the picture that is cut off."""
    return [i for i, row in enumerate(dataset.rows) if TRUNCATED not in str(dataset.file(row))]


def words(conversation) -> list[str]:
    """The questions, as the original writes them."""
    tags = "<Img><ImageHere></Img>"
    return ["".join(part if isinstance(part, str) else tags for part in turn.question) for turn in conversation.turns]


@pytest.mark.slow
def test_the_recipe_names_them_all(recipe):
    mixture = json.loads((FIXTURES / "minigptv2" / "mixture.json").read_text())
    theirs = {own["name"]: (own["sample_ratio"], own["batch_size"]) for own in mixture["datasets"]}
    assert {name: (own.sample_ratio, own.batch_size) for name, own in recipe.datasets.items()} == theirs
    assert list(recipe.datasets) == list(theirs)  # their order decides what is drawn


def test_lengths(dataset, name):
    assert len(dataset) == golden(name)["length"]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TALKS])
def test_every_pair_and_how_likely_it_is(name, recipe):
    dataset = build_dataset(name, recipe.datasets[name], "train")
    for index, pairs in enumerate(PAIRS[name]["per_index"]):
        if index not in usable(dataset):
            continue
        drawn = sum(count for *_, count in pairs)
        own = {("<Img><ImageHere></Img>" * dataset.shows + q, a): p for (q, a), p in dataset.variants(index).items()}
        theirs = {(question, answer): count / drawn for question, answer, count in pairs}
        assert own.keys() == theirs.keys()
        for pair, p in own.items():
            assert abs(p - theirs[pair]) < 5 * (p * (1 - p) / drawn) ** 0.5 + 1e-9, pair


def test_what_is_drawn_is_among_them(dataset, name):
    for index in usable(dataset):
        for _ in range(3):
            sample = dataset[index]
            (turn, *_) = sample["conversation"].turns
            if name not in TALKS:
                assert (turn.words, turn.answer) in dataset.variants(index)
            assert sample["conversation"].kind == ("dialogue" if name in TALKS else "instruction")
            assert [p.shape for p in turn.pictures] == [(3, 448, 448)] * dataset.shows


def test_conversations(recipe):
    for name in TALKS:
        dataset = build_dataset(name, recipe.datasets[name], "train")
        for sample in golden(name)["samples"]:
            if sample["index"] not in usable(dataset):
                continue
            row, theirs = dataset.rows[sample["index"]], sample["output"]
            own = dataset.conversation(row, dataset.file(row))
            assert "!@#".join(words(own)) == theirs["conv_q"]
            assert "!@#".join(turn.answer for turn in own.turns) == theirs["conv_a"]


def test_names_and_pictures(dataset, name):
    for sample in golden(name)["samples"]:
        theirs, row = sample["output"], dataset.rows[sample["index"]]
        if sample["index"] not in usable(dataset):
            continue
        for key in ("image_id", "question_id"):
            if key in theirs:
                assert dataset.name(row) == theirs[key]
        if "image" in theirs:
            image = open_image(dataset.file(row))
            assert list(image.size) == theirs["image"]["size"]
            assert hashlib.sha256(np.asarray(image).tobytes()).hexdigest() == theirs["image"]["sha256"]


def test_a_picture_that_is_cut_off_is_refused(recipe):
    dataset = build_dataset("aok_vqa", recipe.datasets["aok_vqa"], "train")
    index = min(set(range(len(dataset))) - set(usable(dataset)))
    with pytest.raises(UserError, match=f"{TRUNCATED} can't be read as a picture"):
        dataset[index]
