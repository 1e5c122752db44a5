"""MiniGPT-v2's data sets, where their files are not as they should be: named, counted, and never executed."""

import json
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.datasets.builders.image_text import build_dataset
from tests.config import COMPAT
from tests.datasets.minigptv2.test_golden import DATA, GOLDEN

CASES = [case for case in json.loads((GOLDEN / "edge_cases.json").read_text()) if case["annotation"] is not None]
COCO = DATA / "coco" / "images"
REFCOCO = "refcoco_annotations/refcoco/instances.json"
FORMATS = {"coco_caption": "coco_captions", "gqa": "vqa", "coco_vqa": "vqa", "aok_vqa": "vqa", "ocrvqa": "ocrvqa"}
FORMATS |= {"textcaps_caption": "textcaps", "llava_conversation": "llava", "multitask_conversation": "llava"}
FORMATS |= {"llava_detail": "llava_first_turn", "unnatural_instruction": "unnatural", "refcoco": "refer"}
FORMATS |= {"flickr_ObjectToPhrase": "phrases_to_boxes", "refvg": "visual_genome"}


def config_of(format_: str, storage, images=COCO, **info) -> DatasetConfig:
    pictures, text = ProcessorConfig("blip2_image_train", image_size=28), ProcessorConfig("blip_caption")
    build_info = BuildInfo(storage, images=images and str(images), **info)
    return DatasetConfig(build_info, ProcessorsConfig(pictures), ProcessorsConfig(text), format=format_)


def build(folder: Path, format_: str, annotation, images=COCO, **info):
    """A data set of one annotation file, or of RefCOCO's two or Visual Genome's."""
    if format_ == "refer":
        (folder / "refcoco").mkdir()
        (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(annotation["refs"]))
        instances = annotation.get("instances", REFCOCO)
        if "bbox" in annotation:
            instances = {"annotations": [{"id": annotation["refs"][0]["ann_id"], "bbox": annotation["bbox"]}]}
        content = instances if isinstance(instances, dict) else json.loads((DATA / REFCOCO).read_text())
        (folder / "refcoco" / "instances.json").write_text(json.dumps(content))
        storage, info = str(folder), {"dataset": "refcoco", "splitBy": "unc"}
    elif format_ == "visual_genome":
        for name, content in annotation.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        storage = str(folder)
    else:
        (folder / "own.json").write_text(json.dumps(annotation))
        storage = str(folder / "own.json")
    return build_dataset("own", config_of(format_, storage, images, **info), "train")


@pytest.mark.parametrize("case", CASES, ids=[f"{case['dataset']}-{case['case']}" for case in CASES])
def test_odd_files_give_samples_or_errors_in_words(case, tmp_path):
    images = DATA / case["images"] if case.get("images") else None
    try:
        dataset = build(tmp_path, FORMATS[case["dataset"]], case["annotation"], images)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except UserError as error:
            assert len(str(error).splitlines()) == 1 and str(tmp_path) in str(error)
        else:
            assert all(isinstance(turn.answer, str) for turn in sample["conversation"].turns)


def test_a_box_that_leaves_the_picture_is_not_clipped(tmp_path):
    (case,) = (case for case in CASES if case["case"] == "box_outside")
    theirs = case["result"]["items"][0][0]["answer"]
    dataset = build(tmp_path, "refer", case["annotation"])
    assert {answer for _, answer in dataset.variants(0)} == {theirs}


ROW = {"question_id": 7, "question": "Is it?", "answer": ["yes", "no", "No", "yes"]}
THERE = "train2014/COCO_train2014_000000000009.jpg"


def test_pictures_that_are_not_there_are_counted_and_named(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    rows = [ROW | {"image": name} for name in (THERE, "train2014/none.jpg", "train2014/nor_this.jpg")]
    assert len(build(tmp_path, "vqa", rows)) == 1
    assert "own.build_info.storage: 2 of 3 samples (66.7 %) are skipped: their picture files are missing" in caplog.text
    assert "none.jpg" in caplog.text
    with pytest.raises(UserError, match="none of its 2 pictures is there, such as .*none.jpg.*Set .*build_info.images"):
        build(tmp_path, "vqa", rows[1:])


def test_the_folder_train_is_looked_into_too(tmp_path):
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    shutil.copy(COCO / Path(THERE).name, tmp_path / "pictures" / "train")
    dataset = build(tmp_path, "vqa", [ROW | {"image": THERE}], tmp_path / "pictures")
    assert dataset[0]["files"] == [str(tmp_path / "pictures" / "train" / Path(THERE).name)]


def test_answers_are_as_likely_as_they_are_given(tmp_path):
    (variants,) = (build(tmp_path, "vqa", [ROW | {"image": THERE}]).variants(0),)
    assert variants == {(" is it? ", "yes"): 0.5, (" is it? ", "no"): 0.5}


@pytest.mark.parametrize(
    ("format_", "row", "complaint"),
    [
        ("vqa", {"question": "a", "image": THERE}, "key 'answer' is missing; expected a list"),
        ("vqa", ROW | {"answer": [], "image": THERE}, "expected a list of texts"),
        ("vqa", ROW | {"answer": ["yes", 7], "image": THERE}, "expected a list of texts"),
        ("vqa", {"question_id": 1}, "key 'image' is missing"),
        ("llava", {"id": "000000000025", "conversations": [{"value": "alone"}]}, "expected a question and its answer"),
        (
            "phrases_to_boxes",
            {"image_id": "1607238141", "phrase": "a", "bbox": ["{<1>}"]},
            "key 'bbox' is .*expected text",
        ),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named_when_it_is_drawn(format_, row, complaint, tmp_path):
    images = DATA / "filtered_flickr" / "images" if format_ == "phrases_to_boxes" else COCO
    dataset = build(tmp_path, format_, [row], images)
    with pytest.raises(UserError, match=f"own.json: sample 0: .*{complaint}"):
        dataset[0]


def test_a_conversation_ends_with_an_answer(tmp_path):
    said = [{"value": text} for text in ("<image>\nOne?", "1 !@# 1", "<image>\nTwo?", "2", "Three?")]
    (turns,) = (build(tmp_path, "llava", [{"id": "000000000025", "conversations": said}])[0]["conversation"].turns,)
    assert [(turn.words, turn.answer) for turn in turns] == [(" One? ", "1 !@# 1"), ("<image>\nTwo? ", "2")]


class Runs:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("refs", [[Runs()], [{"ref_id": Runs()}], {"a": 1}, [1]])
def test_references_execute_nothing(refs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"refs\(unc\).p' (is not a readable RefCOCO pickle|holds no list)"):
        build(tmp_path, "refer", {"refs": refs, "instances": {"annotations": []}})
    assert not (tmp_path / "ran").exists()


def test_a_split_that_is_not_there_is_reported_with_those_that_are():
    info = {"dataset": "refcocog", "splitBy": "und"}
    with pytest.raises(UserError, match=r"refs\(und\).p' is not a file. Set .*splitBy; there: .*refs\(umd\).p"):
        build_dataset("own", config_of("refer", str(DATA / "refcoco_annotations"), **info), "train")


def test_without_training_the_first_and_likeliest_is_taken(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps([ROW | {"image": THERE, "answer": ["a", "b", "b"]}]))
    config = config_of("vqa", str(tmp_path / "own.json"))
    config = replace(config, instructions=["one {}", "two {}"], build_info=replace(config.build_info, valid_storage=""))
    config.build_info.valid_storage, config.vis_processor.eval = config.build_info.storage, config.vis_processor.train
    config.text_processor.eval = config.text_processor.train
    (turn,) = build_dataset("own", config, "val")[0]["conversation"].turns
    assert (turn.words, turn.answer) == (" one is it? ", "b")


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", sorted(COMPAT.glob("final__minigpt4__configs__datasets__*.yaml")), ids=lambda f: f.name
)
def test_the_originals_data_yamls_name_what_our_defaults_name(file):
    config = load_config(file, [])
    for name, block in config.datasets.items():
        assert block.format or name in ("cc_sbu", "laion", "cc_sbu_align")
        own = load_config("minigpt4_eval", [f"datasets.{name}.sample_ratio=1"])
        assert block.build_info == own.datasets[name].build_info


@pytest.mark.slow
def test_instructions_are_templates(tmp_path):
    for text in ("{} and {}", "{name}", "{"):
        with pytest.raises(UserError, match="datasets.gqa.instructions: .* is not a template"):
            load_config("minigpt4_eval", [f"datasets.gqa.instructions=['{text}']"])
    with pytest.raises(UserError, match="datasets.gqa.build_info.storage: .* is not a path"):
        load_config("minigpt4_eval", ["datasets.gqa.build_info.storage=[1]"])
