"""A page of results: scores with intervals, a bar chart, and a gallery of questions, answers and pictures."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.config.schema import EvaluationDatasetConfig
from minigpt4.evaluation.benchmark import Question, load_benchmark
from minigpt4.evaluation.results import Result
from minigpt4.evaluation.tables import flat
from minigpt4.processors.picture_file import open_image, thumbnail_url

logger = logging.getLogger(__name__)

_THUMBNAIL = 320  # pixels of the longer side


@dataclass(frozen=True)
class Bar:
    """One score of one result, in percent of the longest bar there is room for."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Card:
    """One question in the gallery.

    Attributes:
        state: right, wrong, unparsed, or partly (a score between).
        boxes: (what, x, y, width, height) in pixels of a picture of size `width` x `height`.
    """

    id: str
    question: str
    answer: str
    reference: str
    state: str
    score: float | None
    tag: str
    thumbnails: list[str]
    width: float = 0
    height: float = 0
    boxes: tuple[tuple[str, float, float, float, float], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Section:
    """What the page shows of one result."""

    title: str
    main: str
    estimate: str
    facts: list[tuple[str, str]]
    bars: list[Bar]
    cards: list[Card]
    left_out: int


def render(results: Sequence[Result], most: int) -> str:
    """The page as one HTML text that needs no other file and no network.

    Args:
        most: questions shown of each result; of more, as many right as wrong ones where there are, from all over.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(loader=PackageLoader("minigpt4", "assets"), autoescape=True, undefined=StrictUndefined)
    sections = [_section(result, most) for result in results]
    overview = [_main_bar(result) for result in results]
    return templates.get_template("report.html").render(sections=sections, overview=overview)


def _section(result: Result, most: int) -> Section:
    manifest, scores, chosen = result.manifest, result.scores, _chosen(result.predictions, most)
    pictures = _questions(result) if chosen else {}
    main = scores["main"]
    factor = 100 if main["scale"] == "fraction" else 1
    numbers = {name: factor * value for name, value in flat(scores["scores"]).items()}
    shown = {name: value for name, value in numbers.items() if 0 <= value <= 100 and not name.startswith("per_")}
    return Section(
        result.title,
        f"{main['name']} {factor * main['value']:.2f}" + ("" if main["scale"] == "points" else " %"),
        _interval(scores["mean"]),
        _facts(manifest, scores),
        [Bar(name, value) for name, value in shown.items() if name != "unparsed"][:60],
        [_card(line, pictures.get(line["id"])) for line in chosen],
        len(result.predictions) - len(chosen),
    )


def _main_bar(result: Result) -> Bar:
    mean = result.scores["mean"]
    low, high = mean["interval_95"]
    return Bar(result.title, *(min(100 * value, 100) for value in (mean["mean"], low, high)))


def _interval(mean: dict[str, Any]) -> str:
    low, high = mean["interval_95"]
    return (
        f"mean of the questions {100 * mean['mean']:.2f} %, standard error {100 * mean['standard_error']:.2f}, "
        f"95 % interval {100 * low:.2f} to {100 * high:.2f}"
    )


def _facts(manifest: dict[str, Any], scores: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader asks about a number."""
    benchmark = manifest["benchmark"]
    weights = [f"{path} ({(own or 'not read')[:12]})" for path, own in manifest["checkpoints"].items()]
    return [
        ("questions", f"{manifest['scored']} scored of {manifest['questions']}"),
        ("not understood", f"{manifest['unparsed']}, counted as wrong"),
        ("failed", f"{manifest['failed']}, counted as wrong"),
        ("scorer", scores["scorer"]),
        ("method", f"{benchmark['method']}, {manifest['decoding']['method']}"),
        ("prompt", benchmark["prompt"]),
        ("template", manifest["template"]),
        ("weights", ", ".join(weights) or "none"),
        ("dtype", ", ".join(f"{part} {dtype}" for part, dtype in manifest["dtype"].items())),
        ("device", f"{manifest['device']}, {manifest['processes']} processes, batch {manifest['batch_size']}"),
        ("annotations", ", ".join(f"{file} ({own[:12]})" for file, own in manifest["annotations"].items())),
        ("answered in", f"{manifest['answer_seconds']:.1f} s"),
        ("git", str(manifest["git"])),
    ]


def _state(line: dict[str, Any]) -> str:
    if not line["parsed"] or "error" in line:
        return "unparsed"
    value = line["score"] or 0.0
    return "right" if value >= 1 else "wrong" if value <= 0 else "partly"


def _chosen(predictions: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many, spread over the file: half of them not right, where there are enough of both."""
    if len(predictions) <= most:
        return predictions
    right = [i for i, line in enumerate(predictions) if _state(line) == "right"]
    other = [i for i, line in enumerate(predictions) if _state(line) != "right"]
    few = min(len(right), len(other), most // 2)
    counts = (few, most - few) if len(right) <= len(other) else (most - few, few)
    kept = {i for own, count in zip((right, other), counts, strict=True) for i in _spread(own, count)}
    return [line for i, line in enumerate(predictions) if i in kept]


def _spread(items: list[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _questions(result: Result) -> dict[str, Question]:
    """The benchmark's questions, for their pictures; none where its files are not there any more."""
    own = result.manifest["benchmark"]["name"]
    try:
        block = EvaluationDatasetConfig(**result.manifest["config"]["evaluation_datasets"][own])
        return {question.id: question for question in load_benchmark(own, block).questions}
    except (UserError, LookupError, TypeError) as error:
        logger.warning("%s: no pictures are shown (%s)", result.folder, error)
        return {}


def _card(line: dict[str, Any], question: Question | None) -> Card:
    reference, understood = line["reference"], line["understood"]
    boxes = []
    grounded = isinstance(reference, dict) and "box" in reference
    if grounded:
        boxes.append(("reference", *_corner_and_size(reference["box"])))
        if isinstance(understood, dict) and "box" in understood:
            boxes.append(("answer", *_corner_and_size(understood["box"])))
        reference = f"box {', '.join(f'{edge:g}' for edge in reference['box'])}"
    return Card(
        line["id"],
        line["prompt"],
        line["answer"],
        _words(reference),
        _state(line),
        line["score"],
        ", ".join(value for value in line["tags"].values() if value),
        [url for picture in (question.pictures if question else ()) if (url := _thumbnail(picture))],
        width=line["reference"]["width"] if grounded else 0,
        height=line["reference"]["height"] if grounded else 0,
        boxes=tuple(boxes),
        error=line.get("error", ""),
    )


def _corner_and_size(box: Sequence[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)


def _words(reference: Any) -> str:
    if isinstance(reference, dict):
        return ", ".join(f"{key} {_words(value)}" for key, value in reference.items())
    if isinstance(reference, list):
        return ", ".join(dict.fromkeys(map(_words, reference)))
    return str(reference)


def _thumbnail(picture: Path | bytes) -> str:
    try:
        image = open_image(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
    except UserError:
        return ""
    return thumbnail_url(image, _THUMBNAIL)
