"""The page of results in a real browser: filters, boxes, a phone."""

import json

import pytest
from PIL import Image

from minigpt4.config.schema import EvaluationDatasetConfig
from minigpt4.evaluation.benchmark import load_benchmark
from minigpt4.evaluation.report import render
from minigpt4.evaluation.results import read_result, write_result
from tests.evaluation import DATA

pytestmark = pytest.mark.browser


@pytest.fixture
def page(tmp_path):
    """A page of boxes, with the answers of the recorded predictions."""
    block = EvaluationDatasetConfig(str(DATA / "refcoco"), str(tmp_path), split="val")
    benchmark = load_benchmark("refcoco", block)
    for question in benchmark.questions:
        size = int(question.reference["width"]), int(question.reference["height"])
        Image.new("RGB", size, "navy").save(question.pictures[0])
    lines = [json.loads(line) for line in (DATA / "refcoco" / "predictions.jsonl").read_text().splitlines()]
    said = {line["id"]: line["prediction"] for line in lines}
    answers = {question.id: said[question.aliases[0]] for question in benchmark.questions}
    made = {
        key: {"id": key, "prompt": "?", "answer": text, "seconds": 0.1, "finish": "stop", "new_tokens": 1}
        for key, text in answers.items()
    }
    manifest = {
        "benchmark": {"name": "refcoco", "kind": "refcoco", "method": "generate", "prompt": "", "scorer": "official"},
        "config": {"evaluation_datasets": {"refcoco": vars(block)}},
        **{"condition": "trained", "checkpoints": {}, "annotations": {}, "decoding": {"method": "greedy"}},
        "preprocess": {"n_frms": 8},
        **{"template": "t", "dtype": {}, "device": "cpu", "processes": 1, "batch_size": 1, "git": None},
    }
    (tmp_path / "result").mkdir()
    write_result(tmp_path / "result", benchmark, made, benchmark.score(answers), manifest)
    (tmp_path / "report.html").write_text(render([read_result(tmp_path / "result")], 100))
    return (tmp_path / "report.html").as_uri(), benchmark


@pytest.mark.parametrize("width", [1280, 390])
def test_boxes_are_drawn_and_cards_filtered(page, browser, width):
    address, benchmark = page
    view = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    view.on("request", lambda request: asked.append(request.url))
    view.goto(address)
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    cards = view.locator(".card:visible")
    assert cards.count() == len(benchmark.questions)
    assert view.evaluate("document.documentElement.scrollWidth") == width
    assert min(bar.bounding_box()["width"] for bar in view.locator(".track:visible").all()) > 0.6 * width
    right = view.locator(".card.right").first
    picture, box = right.locator("img").bounding_box(), right.locator("rect.reference").bounding_box()
    key = right.locator(".state").last.inner_text().rsplit(", ", 1)[1]
    gold = next(question.reference for question in benchmark.questions if question.id == key)
    x0, y0, x1, y1 = gold["box"]
    assert (box["x"] - picture["x"]) / picture["width"] == pytest.approx(x0 / gold["width"], abs=0.03)
    assert box["height"] / picture["height"] == pytest.approx((y1 - y0) / gold["height"], abs=0.05)
    assert right.locator("rect.answer").count() == 1
    for state in ("right", "wrong", "unparsed"):
        view.locator(f"button[data-state={state}]").click()
        found = cards.evaluate_all("cards => cards.map(card => card.dataset.state)")
        assert found and set(found) == {state}
    view.locator("button[data-state=all]").click()
    view.locator("input[type=search]").fill(benchmark.questions[3].id)
    assert cards.count() >= 1 and cards.count() < len(benchmark.questions)
