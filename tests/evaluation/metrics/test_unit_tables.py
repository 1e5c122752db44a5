"""Normalisers, parsers and overlaps, case by case as the official code gave them."""

import pytest

from minigpt4.evaluation.metrics.boxes import iou, iou_of_pixels, parse_box
from minigpt4.evaluation.metrics.options import first_letter, llava_letter, mmbench_option
from minigpt4.evaluation.metrics.vqa import agreement, evalai, normalise, official_accuracy, original_accuracy
from minigpt4.evaluation.metrics.yes_no import lmms_eval_mme_answer, mme_answer, pope_answer, pope_scores
from tests.evaluation import DATA, read_lines


def table(name: str) -> list[dict]:
    rows = read_lines(DATA / "unit_tables" / f"{name}.jsonl")
    assert len(rows) > 30
    return rows


def test_vqa_normalisers():
    for row in table("vqa_normaliser"):
        assert (normalise(row["input"]), evalai(row["input"])) == (row["vqa_official"], row["evalai_m4c"]), row


def test_yes_and_no():
    for row in table("yes_no_parsers"):
        found = [parse(row["input"]) for parse in (mme_answer, lmms_eval_mme_answer, pope_answer)]
        assert found == [row["mme_official"], row["mme_lmms_eval"], row["pope_official"]], row


def test_overlaps():
    for row in table("compute_iou"):
        found = iou_of_pixels(row["box1"], row["box2"])
        assert found == pytest.approx(row["iou_minigpt4_plus1"], abs=1e-12) and (found > 0.5) == row["hit"], row


def test_options():
    for row in table("mcq_option_matching_vlmevalkit"):
        assert mmbench_option(row["answer"], row["choices"]) == row["option"], row


def test_the_text_of_an_option_within_a_long_answer_counts_for_nothing():
    choices = {"A": "red car", "B": "dog"}  # 10 characters together
    assert mmbench_option("it is the red car!!!", choices) == "A"
    assert mmbench_option("it is the red car!!!!", choices) is None


def test_agreement_is_with_the_other_humans():
    answers = ["a"] * 2 + ["b"] * 8
    assert [agreement(text, answers) for text in "abc"] == pytest.approx([0.6, 1.0, 0.0])
    assert agreement("a", ["a", "b", "b"]) == pytest.approx(2 / 9)  # equal answers of different humans all count


def test_unanimous_humans_are_compared_as_they_wrote():
    assert official_accuracy("Yes", ["yes"] * 10) == 0 and original_accuracy("Yes", ["yes"] * 10) == 1
    assert official_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1


def test_iou_of_points_has_no_extra_pixel():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou_of_pixels((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 2)
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


@pytest.mark.parametrize("text", ["", "{<1><2><3>}", "at {<1><2><3><4>}", "{<1><2><3><4>}{<1><2><3><4>}", "[1,2,3,4]"])
def test_what_is_no_box(text):
    assert parse_box(text, 100, 100) is None


def test_a_box_is_in_hundredths_of_the_sides():
    assert parse_box(" {<10> <20><30><100>}<unk> there", 200, 50) == (20, 10, 60, 50)


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("B. it", "B"), ("B.", None), ("b", None), ("(B)", None), ("F", None), ("F. it", None), ("", None)]
    + [("The answer is B.", "B"), ("The answer is B", None), ("The answer is B. The answer is C.", None)],
)
def test_llavas_letters(text, letter):
    assert llava_letter(text) == letter


def test_first_letters():
    assert [first_letter(text) for text in (" b", "C. x", "", "(D)")] == ["B", "C", None, "("]


def test_a_model_that_never_says_yes_has_scores():
    found = pope_scores({"TP": 0, "FP": 0, "TN": 3, "FN": 1})
    assert found == {"accuracy": 0.75, "precision": 0, "recall": 0, "f1_score": 0, "yes_ratio": 0}
