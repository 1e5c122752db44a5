"""MMBench (Liu et al. 2023): lettered options, each question asked once for each rotation of its options."""

import base64
import binascii
import csv
import io
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import judge
from minigpt4.evaluation.metrics.options import LETTERS, mmbench_option
from minigpt4.evaluation.prompts import LETTERED, lettered
from minigpt4.evaluation.source import Row, Source, read_text

_ROTATION = 1_000_000  # added to the index for each
_SHORT_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


@registry.register_benchmark("mmbench")
def mmbench(source: Source) -> Benchmark:
    """The published TSV, whose rows hold their pictures.

    official: MMBench's evaluator (VLMEvalKit) without its judge model: what its rules can't infer is wrong. In percent:
    `circular`, a question is right where all its rotations are, and `vanilla`, over the rows that are not rotated. At
    the top of the JSON `circular` is by category, in fractions.
    """
    template = source.template(LETTERED, "hint", "question", "choices")
    file = source.split_file("*.tsv", "MMBench_DEV_EN") if source.path.is_dir() else source.path
    rows = list(_rows(source.noted(file)))
    images = {row.id("index"): row.get("image") or "" for row in rows}
    questions = [_question(source, template, row, images) for row in rows]
    return Benchmark(questions, {"official": _official}, template)


def _rows(file: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # pictures are fields
    lines = io.StringIO(read_text(file), newline="")
    for record, cells in enumerate(csv.DictReader(lines, delimiter="\t"), 1):
        yield Row(cells, f"{file}: record {record}")


def _question(source: Source, template: str, row: Row, images: Mapping[str, str]) -> Question:
    index = row.id("index")
    choices = {letter: row.get(letter) for letter in LETTERS[:8] if row.get(letter)}
    if not index.isdecimal() or row.text("answer") not in choices:
        raise UserError(f"{row.place}: the index is '{index}', the answer '{row['answer']}' of {', '.join(choices)}.")
    image = images[index]
    picture = _decoded(images.get(image, image), row.place)  # a rotation may name the row that has the picture
    return Question(
        index,
        lettered(template, row.get("hint") or "", row.text("question"), choices.values(), choices),
        (picture,) if picture or not source.block.img_path else (source.picture(f"{index}.jpg"),),
        {"answer": row.text("answer"), "options": choices},
        tuple(choices),
        {"split": row.get("split") or "", "category": row.text("category"), "l2-category": row.text("l2-category")},
        place=row.place,
    )


def _decoded(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise UserError(f"{place}: its picture is not base64 ({error}). Download the file again.") from None


def _judged(text: str, question: Question) -> Judged:
    letter = mmbench_option(text, question.reference["options"])
    return Judged(float(letter == question.reference["answer"]), letter is not None, letter)


def _official(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = judge(questions, predictions, _judged)
    groups = defaultdict(list)
    for question in questions:
        groups[str(int(question.id) % _ROTATION)].append(question)
    hits = {key: float(all(samples[q.id].value for q in rotations)) for key, rotations in groups.items()}
    plain = {q.id: samples[q.id].value for q in questions if int(q.id) < _ROTATION}
    split = " ".join(dict.fromkeys(q.tags["split"] for q in questions))
    tags = {key: rotations[0].tags for key, rotations in groups.items()}
    circular = {"split": split, "Overall": sum(hits.values()) / len(hits)}
    for tag in ("l2-category", "category"):
        for name in dict.fromkeys(own[tag] for own in tags.values()):
            values = [hit for key, hit in hits.items() if tags[key][tag] == name]
            circular[_SHORT_NAMES.get(name, name)] = sum(values) / len(values)
    vanilla = sum(plain.values()) / len(plain) if plain else 0.0
    details = {
        "inferred": {key: judged.understood or False for key, judged in samples.items()},
        "circular_hit": {key: int(hit) for key, hit in hits.items()},
        "n_groups": len(hits),
        "vanilla_first_pass": {"overall": vanilla, "hit": {key: int(hit) for key, hit in plain.items()}},
    }
    scores = {"circular": 100 * sum(hits.values()) / len(hits), "vanilla": 100 * vanilla}
    return Scores(scores, "circular", "percent", samples, details, {"circular": circular}, hits)
