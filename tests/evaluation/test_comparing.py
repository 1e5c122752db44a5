"""Two results side by side, in the terminal and on a page."""

import json
import re
import shutil
from pathlib import Path

import pytest

from minigpt4.evaluation.report import render
from minigpt4.evaluation.results import read_result
from tests.evaluation.evaluations import RECORDS, config_of, evaluate, predictions, write_questions


@pytest.fixture(scope="module")
def results(_parity_engine, parity_config, tmp_path_factory):
    """The folders of a result, of one whose first two answers became right, and of the control."""
    folder = tmp_path_factory.mktemp("results")
    write_questions(folder)
    evaluate(_parity_engine.model, config_of(parity_config, folder, folder / "a", controls=["blank_images"]))
    said = [line["answer"] for line in predictions(folder / "a")]
    own = [record | {"answer": said[i] if i < 2 else "a"} for i, record in enumerate(RECORDS)]
    (folder / "b").mkdir()
    write_questions(folder / "b", own)
    shutil.copy(folder / "0.png", folder / "b")
    evaluate(_parity_engine.model, config_of(parity_config, folder / "b", folder / "c"))
    return folder / "a" / "x", folder / "c" / "x", folder / "a" / "x_blank_images"


def test_the_difference_is_paired_and_names_what_flipped(results, minigpt4):
    a, b, _ = results
    code, said, _ = minigpt4("compare", a, b)
    assert code == 0 and "B - A: +50.00 points, 95 % interval +0.00 to +100.00 (paired, 4 questions)" in said
    assert "2 better, 0 worse" in said and "  better #0: " in said and "(reference ['a'])" in said
    assert "warning: annotations.questions.json: " in said  # what was asked is not the same
    found = json.loads(minigpt4("compare", a, b, "--json")[1])
    assert (found["better"], found["worse"]) == (["#0", "#1"], []) and found["difference"]["mean"] == 0.5
    assert json.loads(minigpt4("compare", b, a, "--json")[1])["worse"] == ["#0", "#1"]
    assert "  better: 1 more" in minigpt4("compare", a, b, "--most", "1")[1]


def test_what_should_be_equal_is_warned_of(results, minigpt4, tmp_path):
    a, _, blank = results
    said = minigpt4("compare", a, blank)[1]
    assert "warning: condition: trained -> blank_images" in said and said.count("warning") == 1
    shutil.copytree(a, tmp_path / "other")
    manifest = json.loads((a / "manifest.json").read_text()) | {"template": "other"}
    manifest["preprocess"]["n_frms"] = 99
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    said = minigpt4("compare", a, tmp_path / "other")[1]
    assert "warning: template: " in said and "warning: preprocess.n_frms: 8 -> 99" in said
    assert "warning" not in minigpt4("compare", a, a)[1]


def test_what_is_not_a_result_is_reported_with_its_cure(results, minigpt4, tmp_path):
    a, _, _ = results
    code, _, error = minigpt4("compare", a, a.parent)
    assert code == 2 and f"'{a.parent}' is not a result: it has no manifest.json. Name one of {a}, " in error
    code, _, error = minigpt4("compare", a, tmp_path)
    assert code == 2 and "minigpt4 evaluate writes one for each benchmark" in error
    shutil.copytree(a, tmp_path / "damaged")
    (tmp_path / "damaged" / "scores.json").write_text("{")
    code, _, error = minigpt4("report", tmp_path / "damaged", "--out", tmp_path / "r.html")
    assert code == 2 and "it is damaged" in error and not (tmp_path / "r.html").exists()
    (tmp_path / "damaged" / "scores.json").write_text('{"main": {}, "mean": {}, "units": null}')
    for command in (["report", tmp_path / "damaged"], ["compare", a, tmp_path / "damaged"]):
        code, _, error = minigpt4(*command)
        assert code == 2 and "it is damaged" in error
    shutil.copytree(a, tmp_path / "asked")
    lines = [line | {"prompt": "Else?"} for line in read_result(a).predictions]
    (tmp_path / "asked" / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, error = minigpt4("compare", a, tmp_path / "asked")
    assert code == 2 and "ask different questions under one id (4, such as '#0')" in error
    shutil.copytree(a, tmp_path / "other")
    lines = [line | {"id": f"other {line['id']}"} for line in read_result(a).predictions]
    (tmp_path / "other" / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, error = minigpt4("compare", a, tmp_path / "other")
    assert code == 2 and "no question in common" in error


def test_a_page_needs_no_other_file(results, minigpt4, tmp_path):
    page = tmp_path / "report.html"
    assert minigpt4("report", results[0].parent, results[1], "--out", page)[0] == 0
    text = page.read_text()
    assert text.count('<article class="card') == 12 and text.count("data:image/jpeg;base64,") == 12
    assert "http" not in text.replace("http-equiv", "") and 'src="data:' in text
    assert text.count('class="card right"') == 2
    assert re.search(r"<dt>weights</dt><dd>[^<,]*ckpt_vicuna0.safetensors \([0-9a-f]{12}\)</dd>", text)
    assert minigpt4("report", results[0], "--out", page, "--most", "2")[0] == 0
    assert page.read_text().count('<article class="card') == 2 and "2 more questions are in" in page.read_text()
    code, _, error = minigpt4("report", results[0], "--out", tmp_path / "no" / "r.html")
    assert code == 2 and "--out: " in error
    code, _, error = minigpt4("compare", *results[:2], "--most", "-3")
    assert code == 2 and "--most: -3 is out of range" in error


def test_an_unfinished_result_is_left_out_and_named(results, minigpt4, tmp_path, caplog):
    for name in ("whole", "part"):
        shutil.copytree(results[0], tmp_path / name)
    (tmp_path / "part" / "scores.json").unlink()
    assert minigpt4("report", tmp_path, "--out", tmp_path / "r.html")[0] == 0
    assert f"{tmp_path / 'part'}: left out, for its evaluation has not ended" in caplog.text
    assert (tmp_path / "r.html").read_text().count("<section>") == 1


@pytest.mark.slow
def test_controls_show_what_the_model_saw(_parity_engine, parity_config, tmp_path):
    write_questions(tmp_path)
    controls = ["shuffled_images", "blank_images"]
    evaluate(_parity_engine.model, config_of(parity_config, tmp_path, tmp_path / "out", controls=controls))

    def pictures(name):
        return re.findall('src="(data:[^"]*)"', render([read_result(tmp_path / "out" / name)], 10))

    own, shuffled, blank = map(pictures, ("x", "x_shuffled_images", "x_blank_images"))
    assert own[0] != own[1] and shuffled == [own[1], own[0]] * 2
    assert len(set(blank)) == 1 and not set(blank) & set(own)


def test_a_question_that_failed_and_grades_are_neither_right_nor_wrong(results, minigpt4, tmp_path):
    shutil.copytree(results[0], tmp_path / "own")
    lines = read_result(results[0]).predictions
    lines[0] |= {"error": "too long"}
    lines[1] |= {"score": None}
    (tmp_path / "own" / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = render([read_result(tmp_path / "own")], 10)
    assert [page.count(f'class="card {state}"') for state in ("failed", "skipped")] == [1, 1] and "too long" in page
    scores = read_result(results[0]).scores | {"graded": True}
    (tmp_path / "own" / "scores.json").write_text(json.dumps(scores))
    page = render([read_result(tmp_path / "own")], 10)
    assert page.count('class="card graded"') == 4 and 'class="main">overall 0.00</span>' in page


def test_relative_paths_are_those_of_where_it_was_evaluated(_parity_engine, parity_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path)
    config = config_of(parity_config, Path("."), tmp_path / "out")
    evaluate(_parity_engine.model, config)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert render([read_result(tmp_path / "out" / "x")], 10).count('src="data:') == 4


def test_counts_are_no_bars_and_the_longest_bar_fits(results, minigpt4, tmp_path):
    shutil.copytree(results[0], tmp_path / "scores")
    scores = read_result(results[0]).scores
    own = {"CIDEr": 1.6, "BLEU": 0.4, "total": 12, "inner": {f"s{i}": 0.1 for i in range(12)}}
    (tmp_path / "scores" / "scores.json").write_text(json.dumps(scores | {"scores": own}))
    minigpt4("report", tmp_path / "scores", "--out", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    bars = re.findall(r'name">(.*?)</span>\s*<span class="track"><i style="width: (.*?)%.*\s*.*number">(.*?)<', text)
    assert bars[:3] == [("CIDEr", "100.00", "160.0"), ("BLEU", "25.00", "40.0"), ("inner.s0", "6.25", "10.0")]
    assert "total" not in [name for name, *_ in bars] and "2 more scores" in text


def test_a_page_without_its_pictures_says_so(results, minigpt4, tmp_path, caplog):
    shutil.copytree(results[0], tmp_path / "moved")
    manifest = json.loads((tmp_path / "moved" / "manifest.json").read_text())
    manifest["config"]["evaluation_datasets"]["x"]["eval_file_path"] = "/no/where"
    (tmp_path / "moved" / "manifest.json").write_text(json.dumps(manifest))
    assert minigpt4("report", tmp_path / "moved", "--out", tmp_path / "r.html")[0] == 0
    assert "no pictures are shown" in caplog.text and "data:image" not in (tmp_path / "r.html").read_text()


def test_answers_and_names_are_text_on_the_page(results, minigpt4, tmp_path):
    shutil.copytree(results[0], tmp_path / "hostile")
    lines = [line | {"answer": "<script>alert(1)</script>"} for line in read_result(results[0]).predictions]
    (tmp_path / "hostile" / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert minigpt4("report", tmp_path / "hostile", "--out", tmp_path / "r.html")[0] == 0
    text = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
