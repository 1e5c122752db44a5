"""Damaged annotations, wrong splits and boxes that can't be: each costs its own sample, and its error says where."""

import logging
import re
from dataclasses import replace

import pytest

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config
from minigpt4.datasets.builders.image_text import build_dataset
from minigpt4.datasets.formats.annotated import box_text
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from tests.datasets.minigptv2.test_faults import COCO, DATA, ROW, THERE, build, config_of

CAPTION = {"image": THERE, "caption": "a kite"}
REF = {"ref_id": 1, "ann_id": 7, "image_id": 9, "split": "train", "sentences": [{"raw": "the kite"}]}
BOX = [1, 2, 5, 6]
IMAGE = {"image_id": 703, "url": "https://x/VG_100K_2/703.jpg"}
REGION = {"region_id": 5, "x": 1, "y": 2, "width": 3, "height": 4, "phrase": "a kite"}
GENOME = DATA / "visual_genome"


def without(row: dict, key: str) -> dict:
    return {name: value for name, value in row.items() if name != key}


def of_genome(regions, images=(IMAGE,)):
    return {"image_data": list(images), "region_descriptions": [{"image_id": 703, "regions": regions}]}


def book(**own):
    first, second, *_ = sorted((DATA / "ocrvqa" / "images").glob("*.jpg"))
    entry = {"split": 1, "imageURL": "http://x/y.jpg", "questions": ["Who?"], "answers": ["Me"]}
    return {first.stem: entry, second.stem: entry | own}


DAMAGED = [
    ("coco_captions", [CAPTION, without(CAPTION, "image")], "sample 1: key 'image' is missing"),
    ("coco_captions", [CAPTION, 7], "sample 1: it is 7; expected an object with keys"),
    ("coco_captions", [CAPTION, CAPTION | {"caption": 7}], "sample 1: key 'caption' is 7; expected text"),
    ("vqa", [ROW | {"image": THERE}, None], "sample 1: it is missing; expected an object with keys"),
    ("vqa", [ROW | {"image": THERE}, ROW | {"image": THERE, "question": 1}], "key 'question' is 1; expected text"),
    ("ocrvqa", book(split=None), "sample 1 .*: key 'split' is missing"),
    ("ocrvqa", book(questions=[7]), r"key 'questions' is \[7\]; expected a list of texts"),
    ("ocrvqa", book(answers=None), "key 'answers' is missing"),
    ("refer", {"refs": [REF, without(REF, "ref_id")]}, r"refs\(unc\).p: ref_id None: key 'ref_id' is missing"),
    ("refer", {"refs": [REF, without(REF, "split") | {"ref_id": 2}]}, "ref_id 2: key 'split' is missing"),
    ("refer", {"refs": [REF, REF | {"ref_id": 2, "ann_id": 8}]}, "ref_id 2: instances.json has no annotation .* 8"),
    ("refer", {"refs": [REF, REF | {"ref_id": 2, "image_id": "9"}]}, "ref_id 2: key 'image_id' is \"9\"; expected a"),
    ("refer", {"refs": [REF, REF | {"ref_id": 2, "sentences": [{"raw": None}]}]}, "ref_id 2: key 'raw' is missing"),
    ("visual_genome", of_genome([REGION, without(REGION, "width")]), "region_id 5 of image 703: key 'bbox' is "),
    ("visual_genome", of_genome([REGION, REGION | {"width": "3"}]), "expected four numbers: x, y, width and height"),
    ("visual_genome", of_genome([REGION, without(REGION, "phrase")]), "key 'phrase' is missing"),
    ("visual_genome", of_genome([REGION, []]), "region_descriptions.json: region_id None of image 703: key"),
]


@pytest.mark.parametrize(("format_", "annotation", "complaint"), DAMAGED)
def test_a_damaged_annotation_costs_its_own_sample(format_, annotation, complaint, tmp_path):
    images = {"visual_genome": GENOME, "ocrvqa": DATA / "ocrvqa" / "images"}.get(format_, COCO)
    if format_ == "refer":
        annotation = annotation | {"instances": {"annotations": [{"id": 7, "bbox": BOX}, 3, {"id": []}]}}
    dataset = build(tmp_path, format_, annotation, images)
    assert len(dataset) == 2 and dataset[0]["files"]
    with pytest.raises(UserError, match=complaint) as error:
        dataset[1]
    assert str(error.value).endswith("Correct or remove this annotation.")


@pytest.mark.parametrize(
    ("format_", "annotation"),
    [
        ("ocrvqa", [1]),
        ("refer", {"refs": [REF], "instances": {"images": []}}),
        ("visual_genome", {"image_data": {"a": 1}, "region_descriptions": []}),
        ("visual_genome", of_genome([REGION], [without(IMAGE, "url")]) | {"image_data": [[]]}),
    ],
)
def test_files_of_another_form_are_errors_in_one_line(format_, annotation, tmp_path):
    with pytest.raises(UserError, match=r"own.build_info.storage|url of image 703") as error:
        build(tmp_path, format_, annotation, GENOME)[0]
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "box", [["1", 2, 3, 4], [1, 2, 3], None, [0, 0, float("inf"), 1], [0, 0, 10**400, 1], [True] * 4]
)
def test_a_box_is_four_numbers(box):
    with pytest.raises(UserError, match="key 'bbox' is .*; expected four numbers"):
        box_text(box, (40, 30))


@pytest.mark.parametrize(
    "box", [[1, 1, -5, -5], [1, 1, 0, 5], [40, 0, 5, 5], [1e8, 1, 2, 2], [-9, 0, 9, 5], [0, 30, 5, 5]]
)
def test_a_box_without_area_in_the_picture_is_refused(box):
    with pytest.raises(UserError, match="has no area within the picture of 40 x 30 pixels. Correct or remove"):
        box_text(box, (40, 30))


def test_instances_may_hold_a_wrong_box(tmp_path):
    dataset = build(tmp_path, "refer", {"refs": [REF], "bbox": ["1", 2, 3, 4]})
    with pytest.raises(UserError, match=r"ref_id 1: key 'bbox' is \[\"1\", 2, 3, 4\]; expected four numbers"):
        dataset[0]


@pytest.mark.parametrize("turns", [["One?", "1", None, "2"], ["One?", 7]])
def test_turns_are_texts(turns, tmp_path):
    row = {"id": "000000000025", "conversations": [{"value": text} for text in turns]}
    with pytest.raises(UserError, match=r"key 'value' is (missing|7).*; expected text|key 'value' is 7"):
        build(tmp_path, "llava", [row])[0]


def of_split(folder, format_, annotation, split, **info):
    build(folder, format_, annotation, **info)
    storage = str(folder if format_ == "refer" else folder / "own.json")
    config = config_of(format_, storage, valid_storage=storage, dataset="refcoco", splitBy="unc")
    config.vis_processor.eval, config.text_processor.eval = config.vis_processor.train, config.text_processor.train
    return build_dataset("own", config, split)


def test_validation_reads_its_own_split(tmp_path):
    refs = [REF, REF | {"ref_id": 2, "split": "val"}, REF | {"ref_id": 3, "split": "testA"}]
    dataset = of_split(tmp_path, "refer", {"refs": refs, "instances": {"annotations": [{"id": 7, "bbox": BOX}]}}, "val")
    assert [row["ref_id"] for row in dataset.rows] == [2]
    captions = [CAPTION, CAPTION | {"image": "val2014/COCO_val2014_000000000042.jpg"}]
    with pytest.raises(UserError, match=r"valid_storage: none of its 1 pictures is there, such as .*COCO_val2014_"):
        of_split(tmp_path, "coco_captions", captions, "val")
    with pytest.raises(UserError, match=r"valid_storage: .* has no annotation of the validation split"):
        of_split(tmp_path, "coco_captions", captions[:1], "val")


def test_pictures_training_decodes_in_full_are_still_of_the_training_split(tmp_path):
    build(tmp_path, "coco_captions", [CAPTION])
    config = config_of("coco_captions", str(tmp_path / "own.json"))
    config.vis_processor.eval = config.vis_processor.train
    assert len(build_dataset("own", config, "train", exact=True)) == 1


@pytest.mark.parametrize("name", ["images/", "a/b/train2014/", "train2014/", ""])
def test_a_picture_is_found_by_its_base_name(name, tmp_path):
    (dataset,) = (build(tmp_path, "vqa", [ROW | {"image": name + THERE.rpartition("/")[2]}]),)
    assert dataset[0]["files"] == [str(COCO / THERE.rpartition("/")[2])]


def test_an_empty_answer_is_drawn_only_where_there_is_no_other(tmp_path):
    dataset = build(tmp_path, "vqa", [ROW | {"image": THERE, "answer": [".", "", ".", "yes"]}])
    assert {dataset[0]["conversation"].turns[0].answer for _ in range(20)} == {"yes"}


def test_only_boxes_need_the_size_of_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "minigpt4.datasets.formats.annotated.opened", lambda file: pytest.fail("the picture was opened")
    )
    assert build(tmp_path, "vqa", [ROW | {"image": THERE}])[0]["files"]


def test_constraints_that_say_none_are_counted(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    own = {"instruction_with_input": "Say it.", "output": "It"}
    rows = [{"instances": [own | {"constraints": text}]} for text in ("None.", None, "In one word.")]
    dataset = build(tmp_path, "unnatural", [*rows, {"instances": []}, 7], images=None)
    assert "in 1 of 5 samples the text 'None.' stands for no constraints" in caplog.text
    for i in (3, 4):
        with pytest.raises(UserError, match=f"own.json: sample {i}: "):
            dataset[i]


@pytest.mark.parametrize("format_", ["refer", "identify", "vqa"])
@pytest.mark.parametrize("text", ["[refer] where is it ?", "[refer] {phrase}", "[refer] {"])
def test_an_instruction_has_a_place_for_the_question(format_, text):
    config = replace(config_of(format_, "nowhere"), instructions=["{}", text])
    with pytest.raises(UserError, match=re.escape(f"datasets.own.instructions: '{text}' has no place")):
        build_dataset("own", config, "train")


def test_references_are_in_one_named_folder(tmp_path):
    with pytest.raises(UserError, match="expected one folder, found 2 paths. Name one"):
        build_dataset("own", config_of("refer", ["a", "b"], dataset="refcoco", splitBy="unc"), "train")
    with pytest.raises(UserError, match=r"own.build_info.dataset: not set. .*refcoco/refs\(unc\).p"):
        build_dataset("own", config_of("refer", str(tmp_path)), "train")


def test_training_writes_down_all_pictures_that_are_missing(tmp_path, caplog):
    config = Config()
    build(tmp_path, "vqa", [ROW | {"image": name} for name in (THERE, *(f"train2014/none{i}.jpg" for i in range(9)))])
    config.run.output_dir = str(tmp_path / "output")
    config.datasets = {"own": config_of("vqa", str(tmp_path / "own.json"))}
    caplog.set_level(logging.WARNING)
    ImageTextPretrainTask(config).build_datasets("train")
    file = tmp_path / "output" / "missing_pictures_train.txt"
    assert len(file.read_text().splitlines()) == 9 and str(file) in caplog.text and "(90 %)" in caplog.text
