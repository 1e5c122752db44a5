"""RefCOCO, RefCOCO+ (Yu et al. 2016) and RefCOCOg (Mao et al. 2016): where is what an expression names?"""

from collections import Counter
from collections.abc import Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import by_tag, judge, percent
from minigpt4.evaluation.metrics.boxes import iou_of_pixels, parse_box
from minigpt4.evaluation.source import Row, Source

_PROMPT = "[refer] give me the location of {sents}"
_HIT = 0.5  # an overlap of more is right


@registry.register_benchmark("refcoco", "refcoco+", "refcocog")
def refcoco(source: Source) -> Benchmark:
    """A folder with the original's {name}/{name}_{split}.json; every split that is there, if none is named.

    official and original are the original's rule (eval_ref.py): the answer begins with a box and holds no other number,
    and their overlap, counted in whole pixels, is more than 0.5. What can't be read is wrong, and counted. Answers are
    not asked for again, as its --resample does: that asks greedily for the same answer.
    """
    template, kind = source.template(_PROMPT, "sents"), source.kind
    files = source.split_files(f"{kind}_*.json", under=kind)
    rows = [(split, i, row) for split, file in files.items() for i, row in enumerate(source.rows(file))]
    questions = [
        Question(
            f"{kind}_{split}_{i}",
            template.format(sents=row.text("sents")),
            (source.picture(f"{row.text('img_id')[:27]}.jpg"),),
            {"box": _box(row), "width": row.number("width"), "height": row.number("height")},
            tags={"split": split, "set": f"{kind}_{split}"},
            aliases=(row.text("img_id"),),
            place=row.place,
        )
        for split, i, row in rows
    ]
    return Benchmark(questions, {"official": _scores, "original": _scores}, template)


def _box(row: Row) -> list[float]:
    """x0, y0, x1, y1 of a box that has a corner, a width and a height."""
    x, y, width, height = row.numbers("bbox", 4)
    return [x, y, x + width, y + height]


def _judged(text: str, question: Question) -> Judged:
    gold = question.reference
    box = parse_box(text, gold["width"], gold["height"])
    if box is None:
        return Judged(0.0, parsed=False)
    overlap = iou_of_pixels(box, gold["box"])
    return Judged(float(overlap > _HIT), understood={"box": list(box), "iou": overlap})


def _scores(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = judge(questions, predictions, _judged)
    counts = Counter(question.aliases[0] for question in questions)
    splits = {name: percent(found) for name, found in by_tag(questions, samples, "set").items()}
    found = {key: judged.understood["iou"] if judged.parsed else None for key, judged in samples.items()}
    overlaps = {
        question.aliases[0] if counts[question.aliases[0]] == 1 else question.id: found[question.id]
        for question in questions
    }
    each = {key: {"iou_plus_one": iou, "correct": bool(samples[key].value)} for key, iou in found.items()}
    scores = {
        "accuracy": percent(list(samples.values())),
        **splits,
        "unparsed": sum(not judged.parsed for judged in samples.values()),
    }
    return Scores(scores, "accuracy", "percent", samples, {"iou": overlaps, "per_sample": each}, {"accuracy": splits})
