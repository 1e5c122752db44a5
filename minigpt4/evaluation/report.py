"""A page of results: scores with intervals, a bar chart, and a gallery of questions, answers and pictures."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.config.schema import EvaluationDatasetConfig
from minigpt4.evaluation.asking import Media, asked, shuffled
from minigpt4.evaluation.benchmark import load_benchmark
from minigpt4.evaluation.results import Result
from minigpt4.evaluation.tables import flat
from minigpt4.processors.picture_file import thumbnail_url

logger = logging.getLogger(__name__)

_THUMBNAIL = 320  # pixels of the longer side
_FRAMES = 8  # shown of a video
_FIRST = 12  # bars that are not folded away
_TYPES = 80  # values of a tag, among which one can still choose


Thumbnail = tuple[str, int, int]  # a URL, width and height in pixels


@dataclass(frozen=True)
class Bar:
    """One number as a bar.

    Attributes:
        width, left, span: of the bar, and of the interval that is drawn on it, in percent of the room for the longest.
    """

    label: str
    value: float
    width: float
    left: float | None = None
    span: float = 0


@dataclass(frozen=True)
class Card:
    """One question in the gallery.

    Attributes:
        state: a key of `STATES`.
        tags: "key: value" each.
        boxes: (what, x, y, width, height) in pixels of a picture of size `width` x `height`.
        answered: the box that was understood, in words.
    """

    id: str
    question: str
    answer: str
    reference: str
    state: str
    score: float | None
    tags: list[str]
    thumbnails: list[Thumbnail]
    width: float = 0
    height: float = 0
    boxes: tuple[tuple[str, float, float, float, float], ...] = ()
    answered: str = ""
    error: str = ""


@dataclass(frozen=True)
class Section:
    """What the page shows of one result.

    Attributes:
        types: tags that cards can be chosen by.
    """

    title: str
    main: str
    estimate: str
    facts: list[tuple[str, str]]
    bars: list[Bar]
    cards: list[Card]
    types: list[str]
    left_out: int


STATES = {
    "right": "score 1",
    "partly": "a score between 0 and 1",
    "wrong": "score 0",
    "unparsed": "no answer was recognised in what the model said; it counts as wrong",
    "failed": "the question could not be asked, for the reason that stands there; it counts as wrong",
    "graded": "its score has no upper end, as CIDEr's, so it is neither right nor wrong",
    "skipped": "the scorer does not count this question",
}


def render(results: Sequence[Result], most: int) -> str:
    """The page as one HTML text that needs no other file and no network.

    Args:
        most: questions shown of each result; of more, as many right as wrong ones where there are, from all over.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(loader=PackageLoader("minigpt4", "assets"), autoescape=True, undefined=StrictUndefined)
    overview = [bar for graded in (False, True) for bar in _bars([_mean(r) for r in results if _graded(r) == graded])]
    sections = [_section(result, most) for result in results]
    page = templates.get_template("report.html")
    return page.render(sections=sections, overview=overview, states=STATES, first=_FIRST)


def _graded(result: Result) -> bool:
    return result.scores.get("graded", False)


def _mean(result: Result) -> tuple[str, float, list[float]]:
    """A row of the overview: the mean times 100, and its interval."""
    mean = result.scores["mean"]
    return result.title, 100 * mean["mean"], [100 * edge for edge in mean["interval_95"]]


def _section(result: Result, most: int) -> Section:
    scores, graded = result.scores, _graded(result)
    chosen = _chosen(result.predictions, most)
    shown = _shown(result) if chosen else {}
    blank = result.manifest["condition"] == "blank_images"
    cards = [_card(line, _thumbnails(shown.get(line["id"], []), blank), graded) for line in chosen]
    main = scores["main"]
    factor = 100 if main["scale"] == "fraction" else 1
    numbers = {name: factor * value for name, value in flat(scores["scores"]).items() if isinstance(value, float)}
    return Section(
        result.title,
        f"{main['name']} {factor * main['value']:.2f}" + ("" if graded or main["scale"] == "points" else " %"),
        _interval(result),
        _facts(result.manifest, scores),
        _bars([(name, value, None) for name, value in numbers.items()]),
        cards,
        _types(cards),
        len(result.predictions) - len(chosen),
    )


def _bars(rows: Sequence[tuple[str, float, Sequence[float] | None]]) -> list[Bar]:
    """Bars of (label, value, interval); the longest possible one is 100, or what is more than that."""
    percent = 100 / max([100.0, *(edge for _, value, interval in rows for edge in (value, *(interval or ())))])

    def width(value: float) -> float:
        return percent * max(value, 0.0)

    return [
        Bar(label, value, width(value), *((width(edges[0]), width(edges[1]) - width(edges[0])) if edges else ()))
        for label, value, edges in rows
    ]


def _types(cards: Sequence[Card]) -> list[str]:
    """Tags worth choosing by: not the only one of their key, and not one of very many."""
    keys: dict[str, set[str]] = defaultdict(set)
    for tag in (tag for card in cards for tag in card.tags):
        keys[tag.partition(": ")[0]].add(tag)
    return [tag for tags in keys.values() if 1 < len(tags) <= _TYPES for tag in sorted(tags)]


def _interval(result: Result) -> str:
    _, mean, (low, high) = _mean(result)
    what = "questions" if result.scores["units"] is None else "groups of questions"
    return (
        f"mean of {len(result.values)} {what} {mean:.2f}, standard error "
        f"{100 * result.scores['mean']['standard_error']:.2f}, 95 % interval {low:.2f} to {high:.2f}"
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
        ("answered in", f"{manifest['seconds']:.1f} s, of all processes"),
        ("git", str(manifest["git"])),
    ]


def _state(line: dict[str, Any]) -> str:
    if "error" in line:
        return "failed"
    if not line["parsed"]:
        return "unparsed"
    if (value := line["score"]) is None:
        return "skipped"
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


def _shown(result: Result) -> dict[str, list[Media]]:
    """{question: what the model was shown}; nothing where the benchmark's files are not there any more."""
    manifest = result.manifest
    name, condition = manifest["benchmark"]["name"], manifest["condition"]
    try:
        block = EvaluationDatasetConfig(**manifest["config"]["evaluation_datasets"][name])
        beside = Path(manifest.get("working_directory", ""))  # where relative paths begin
        block.eval_file_path, block.img_path = str(beside / block.eval_file_path), str(beside / block.img_path)
        questions = asked(load_benchmark(name, block), manifest["preprocess"]["n_frms"])
    except (UserError, LookupError, TypeError) as error:
        logger.warning("%s: no pictures are shown (%s)", result.folder, error)
        return {}
    other = shuffled(questions) if condition == "shuffled_images" else {}
    return {own.id: [other.get(shown, shown) for shown in own.shown] for own in questions}


def _card(line: dict[str, Any], thumbnails: list[Thumbnail], graded: bool) -> Card:
    reference, understood = line["reference"], line["understood"]
    boxes, answered = [], ""
    grounded = isinstance(reference, dict) and "box" in reference
    if grounded:
        boxes.append(("reference", *_corner_and_size(reference["box"])))
        if isinstance(understood, dict) and "box" in understood:
            boxes.append(("answer", *_corner_and_size(understood["box"])))
            answered = _box(understood["box"])
        reference = _box(reference["box"])
    return Card(
        line["id"],
        line["prompt"],
        line["answer"],
        _words(reference),
        "graded" if graded else _state(line),
        line["score"],
        [f"{key}: {value}" for key, value in line["tags"].items() if value],
        thumbnails,
        width=line["reference"]["width"] if grounded else 0,
        height=line["reference"]["height"] if grounded else 0,
        boxes=tuple(boxes),
        answered=answered,
        error=line.get("error", ""),
    )


def _box(edges: Sequence[float]) -> str:
    return f"box {', '.join(f'{edge:g}' for edge in edges)}"


def _corner_and_size(box: Sequence[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)


def _words(reference: Any) -> str:
    if isinstance(reference, dict):
        return ", ".join(f"{key} {_words(value)}" for key, value in reference.items())
    if isinstance(reference, list):
        return ", ".join(dict.fromkeys(map(_words, reference)))
    return str(reference)


def _thumbnails(shown: Sequence[Media], blank: bool) -> list[Thumbnail]:
    """Small copies of what the model saw; without those that can't be read any more."""
    found: list[Thumbnail] = []
    for one in shown:
        with suppress(UserError):
            # the call makes the picture smaller, so its size is asked for after it
            found += [(thumbnail_url(image, _THUMBNAIL), *image.size) for image in one.images(blank)[:_FRAMES]]
    return found
