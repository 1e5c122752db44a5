"""The command `score` gives every number that the official scorers, and the original's, gave on the same answers."""

import csv
import json
import os
import shutil
from dataclasses import dataclass

import pytest

from minigpt4.evaluation.metrics import captions
from tests.evaluation import DATA, VARIANTS, differences, leaves, read, read_lines, write_lines


@dataclass(frozen=True)
class Case:
    """One run of the command, and the part of an expected.json that it gives."""

    folder: str
    benchmark: str
    scorer: str = "official"
    file: str = ""  # below the folder, where that is not what is named
    part: tuple[str, ...] = ()  # of expected.json
    ours: tuple[str, ...] = ()  # of what the command prints

    def __str__(self) -> str:
        return "-".join((self.folder.replace("/", "_"), self.scorer, *self.part))


FOLDERS = [
    *(Case(name, name, "original") for name in ("okvqa", "vqav2", "vizwiz", "iconvqa", "gqa", "vsr", "hm")),
    *(Case(name, name, "original") for name in ("refcoco", "refcoco+", "refcocog")),
    *(Case(name, name) for name in ("textvqa", "aokvqa", "pope", "scienceqa", "mmbench")),
    *(Case(name, name, "lmms_eval") for name in ("mme", "seedbench")),  # whose rules gave these
]
_GQA = ("official_balanced", "official_all_with_consistency_and_choices")
OFFICIAL = [
    *(Case(f"variants/{n}", n) for n in ("okvqa", "vqav2", "vizwiz", "vsr", "textvqa", "aokvqa", "pope", "mme")),
    *(Case(f"variants/{n}", n) for n in ("scienceqa", "seedbench", "mmbench")),
    Case("variants/hateful_memes", "hm"),
    Case("variants/iconqa", "iconvqa", "original"),
    Case("variants/iconqa", "iconvqa", part=("variants", "official_sub_acc", "scores")),
    Case("variants/gqa", "gqa", part=_GQA[:1]),
    Case("variants/gqa", "gqa", file="val_all_questions.json", part=_GQA[1:]),
    Case(
        "variants/mmbench", "mmbench", part=("variants", "vlmevalkit_vanilla_first_pass"), ours=("vanilla_first_pass",)
    ),
]
_GQA_LIST = "minigpt4_style_testdev_balanced_questions.json"
ORIGINAL = [
    Case("variants/okvqa", "okvqa", "original", part=("variants", "minigpt4_eval_vqa")),
    Case("variants/vqav2", "vqav2", "original", part=("variants", "minigpt4_vqaEval")),
    Case("variants/vizwiz", "vizwiz", "original", part=("variants", "minigpt4_eval_vqa")),
    Case("variants/gqa", "gqa", "original", file=_GQA_LIST, part=("variants", "minigpt4_eval_vqa")),
]
CASES = FOLDERS + OFFICIAL + ORIGINAL
CAPTIONS = [Case("coco_caption", "coco_caption"), *(Case(f"variants/{n}", n) for n in ("coco_caption", "nocaps"))]

OTHERS = "another project's scorer, neither official nor the original's"
NOT_OURS = {
    "variants/vqav2": dict.fromkeys(
        [("variants", name) for name in ("lavis_vqa_eval", "llava_evalai_then_official", "lmms_eval_vqav2_val")], OTHERS
    ),
    "variants/okvqa": {
        ("variants", "lmms_eval_ok_vqa"): OTHERS,
        ("variants", "minigpt4_eval_vqa", "overall_from_script_run"): "overall under another name",
    },
    "variants/gqa": dict.fromkeys(
        [("variants", n) for n in ("llava_convert_then_official", "lavis_gqa_task", "lmms_eval_exact_match")], OTHERS
    ),
    "variants/textvqa": {("variants", "lmms_eval_textvqa"): OTHERS},
    "variants/pope": dict.fromkeys([("variants", "llava_eval_pope"), ("variants", "lmms_eval_pope")], OTHERS),
    "variants/mme": dict.fromkeys([("variants", "lmms_eval_mme"), ("variants", "vlmevalkit_exact")], OTHERS),
    "variants/scienceqa": {("variants", "lmms_eval_scienceqa"): OTHERS},
    "variants/seedbench": {("variants", "lmms_eval_seedbench"): OTHERS},
    "variants/mmbench": {("variants", "lmms_eval_static"): OTHERS},
    "variants/hateful_memes": {("variants", "challenge"): "test_auroc_of_probabilities"},
    "variants/vsr": {("variants", "official_by_relation"): "test_accuracy_by_relation_of_labels"},
    "variants/refcoco": {(): "test_grounding_of_all_splits"},
}


def at(tree: dict, path: tuple[str, ...]) -> dict:
    for key in path:
        tree = tree[key]
    return tree


def expected_of(case: Case) -> dict:
    found = at(read(DATA / case.folder / "expected.json"), case.part)
    other = {key for key in found if key == "variants" or (not case.part and key in _GQA)}
    return {key: value for key, value in found.items() if key not in other}


def without_not_ours(case: Case, expected: dict) -> dict:
    for path in NOT_OURS.get(case.folder, {}):
        if path[: len(case.part)] == case.part and len(path) == len(case.part) + 1:
            expected.pop(path[-1], None)
    return expected


@pytest.fixture
def score(minigpt4):
    def run(benchmark, path, predictions, *arguments):
        files = ["--eval-file-path", path, "--predictions", predictions]
        code, out, err = minigpt4("score", benchmark, *files, "--json", *arguments)
        assert code == 0, err
        return json.loads(out)

    return run


def run_case(score, case: Case) -> dict:
    folder = DATA / case.folder
    return score(case.benchmark, folder / case.file, folder / "predictions.jsonl", "--scorer", case.scorer)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_number_is_the_official_one(case, score):
    found = run_case(score, case)
    expected = without_not_ours(case, expected_of(case))
    assert list(leaves(expected)) and not differences(at(found, case.ours), expected)
    assert found["scorer"] == case.scorer and found["benchmark"] == case.benchmark


def test_no_number_of_the_expectations_is_forgotten():
    for file in sorted(DATA.rglob("expected.json")):
        folder = str(file.parent.relative_to(DATA))
        claimed = [case.part for case in CASES + CAPTIONS if case.folder == folder and case.part]
        top = any(case.folder == folder and not case.part for case in CASES + CAPTIONS)
        claimed += list(NOT_OURS.get(folder, {}))
        for path, _ in leaves(read(file)):
            of_top = top and path[0] != "variants"
            assert of_top or any(path[: len(part)] == part for part in claimed), (folder, path)


@pytest.mark.slow
def test_auroc_of_probabilities(score, tmp_path):
    folder = VARIANTS / "hateful_memes"
    with open(folder / "probabilities.csv") as file:
        rows = [{"id": row["id"], "prediction": row["proba"]} for row in csv.DictReader(file)]
    found = score("hm", folder, write_lines(tmp_path / "p", rows), "--scorer", "challenge")
    assert not differences(found, read(folder / "expected.json")["variants"]["challenge"])


def test_accuracy_by_relation_of_labels(score, tmp_path):
    folder = VARIANTS / "vsr"
    labels = (folder / "preds_official.txt").read_text().split()
    predictions = write_lines(tmp_path / "p", [{"id": i, "prediction": label} for i, label in enumerate(labels)])
    found = score("vsr", folder, predictions, "--scorer", "by_relation")
    assert not differences(found, read(folder / "expected.json")["variants"]["official_by_relation"])


@pytest.mark.parametrize("scorer", ["official", "original"])
@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_grounding_of_all_splits(name, scorer, score):
    """The original's overlaps are of answers that it scores. Its --resample, which asks again, is not ours."""
    folder = VARIANTS / "refcoco"
    expected = read(folder / "expected.json")
    found = score(name, folder, folder / "predictions.jsonl", "--scorer", scorer)
    splits = {key: value for key, value in expected["accuracy"].items() if key.rpartition("_")[0] == name}
    assert splits.keys() == found["accuracy"].keys() and not differences(found["accuracy"], splits)
    samples = {k: v for k, v in expected["per_sample"].items() if k.rpartition("_")[0].rpartition("_")[0] == name}
    assert samples.keys() == found["per_sample"].keys()
    for key, sample in samples.items():
        ours = found["per_sample"][key]
        scored = sample["matches_pattern"] and isinstance(sample["iou_plus_one"], float)
        assert ours["correct"] == sample["correct"]
        assert ours["iou_plus_one"] == (pytest.approx(sample["iou_plus_one"], abs=1e-9) if scored else None)
    assert found["unparsed"] == sum(sample["iou_plus_one"] is None for sample in found["per_sample"].values()) > 0


def test_one_split_of_a_file_with_answers_to_all(score):
    folder = VARIANTS / "refcoco"
    found = score("refcoco", folder, folder / "predictions.jsonl", "--split", "testA")
    assert found["accuracy"] == {"refcoco_testA": 25.0} and found["questions"] == 12


def test_lmms_evals_rule_for_mme(score):
    folder = VARIANTS / "mme"
    found = score("mme", folder, folder / "predictions.jsonl", "--scorer", "lmms_eval")
    theirs = read(folder / "expected.json")["variants"]["lmms_eval_mme"]["scores"]
    assert found["perception"] == pytest.approx(theirs["mme_perception_score"])
    assert found["cognition"] == pytest.approx(theirs["mme_cognition_score"])


def test_captions_of_recorded_tokens(score, monkeypatch):
    """Without Java, whose part is the tokens and METEOR."""
    folder = DATA / "coco_caption"
    tokens = read(folder / "tokenized.json")
    monkeypatch.setattr(captions, "tokenize", lambda c: tokens["predictions" if len(c["14959"]) == 1 else "references"])
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    found = score("coco_caption", folder, folder / "predictions.jsonl")
    expected = read(folder / "expected.json")
    del expected["scores"]["METEOR"]
    assert not differences(found, expected) and "METEOR" not in found


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java") and not os.environ.get("CI"), reason="needs Java")
@pytest.mark.parametrize("case", CAPTIONS, ids=str)
def test_captions(case, score):
    assert not differences(run_case(score, case), expected_of(case))


def test_scienceqas_grades_end_with_the_sixth(score, tmp_path):
    """No question of the recorded data is of that grade."""
    folder = shutil.copytree(DATA / "scienceqa", tmp_path / "scienceqa")
    problems = read(folder / "problems.json")
    for key, problem in problems.items():
        problem["grade"] = "grade6" if key == "0" else "grade7"
    (folder / "problems.json").write_text(json.dumps(problems))
    found = score("scienceqa", folder, write_lines(tmp_path / "p", [{"id": "0", "prediction": "B"}]))
    grades = found["official_subscores"]
    assert (grades["acc_grade_1_6"], grades["acc_grade_7_12"], found["correct"]) == (100, 0, 1)


def test_lines_of_predictions_need_not_be_in_order(score, tmp_path):
    folder = VARIANTS / "mme"
    rows = read_lines(folder / "predictions.jsonl")[::-1]
    found = score("mme", folder, write_lines(tmp_path / "p", rows))
    assert not differences(found, expected_of(Case("variants/mme", "mme")))
