"""ScienceQA (Lu et al. 2022): questions from schoolbooks with lettered options; some have a picture, most do not."""

from collections.abc import Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import Samples, judge, percent
from minigpt4.evaluation.metrics.options import LETTERS, llava_letter
from minigpt4.evaluation.prompts import LETTERED, lettered
from minigpt4.evaluation.source import Row, Source

_TOPICS = (
    *("punctuation", "literacy-in-science", "verbs", "pronouns", "civics", "culture", "word-study", "economics"),
    *("physics", "units-and-measurement", "science-and-engineering-practices", "reading-comprehension"),
    *("global-studies", "grammar", "figurative-language", "us-history", "writing-strategies", "world-history"),
    *("reference-skills", "biology", "earth-science", "phonological-awareness", "capitalization", "chemistry"),
    *("vocabulary", "geography"),
)
_SUBJECTS = ("natural", "social", "language")


@registry.register_benchmark("scienceqa")
def scienceqa(source: Source) -> Benchmark:
    """A folder with problems.json and pid_splits.json; pictures lie in {split}/{id}.

    official: the letter by LLaVA's eval_science_qa.py, over all and over those with a picture; the other scores as
    evaluate_acc.py of lupantech/ScienceQA. What is missing is wrong.
    """
    template = source.template(LETTERED, "hint", "question", "choices")
    file, splits_file = source.folder / "problems.json", source.folder / "pid_splits.json"
    problems, splits = Row(source.json(file), str(file)), Row(source.json(splits_file), str(splits_file))
    split = source.split(splits) or "test"
    questions = [_question(source, template, problems.row(key), key) for key in splits.texts(split)]
    return Benchmark(questions, {"official": _official}, template, missing="wrong")


def _question(source: Source, template: str, row: Row, key: str) -> Question:
    choices, image, hint = row.texts("choices"), row.get("image"), row.get("hint") or ""
    tags = {name: str(row.get(name) or "") for name in ("subject", "topic", "grade", "split")}
    return Question(
        key,
        lettered(template, hint, row.text("question"), choices),
        (source.picture(f"{tags['split']}/{key}/{image}"),) if image else (),
        LETTERS[row.index("answer", len(choices))],
        tuple(LETTERS[: len(choices)]),
        tags | {"has_image": str(bool(image)), "has_hint": str(bool(hint))},
        place=row.place,
    )


def _judged(text: str, question: Question) -> Judged:
    letter = llava_letter(text)
    letter = letter if letter in question.choices else None
    return Judged(float(letter == question.reference), letter is not None, letter)


def _official(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = judge(questions, predictions, _judged)
    groups = _groups(questions, samples)
    scores = {
        "accuracy": percent(list(samples.values())),
        "img_accuracy": percent(groups["has_image"]) if groups["has_image"] else None,
        "total": len(samples),
        "correct": round(sum(judged.value for judged in samples.values())),
        "official_subscores": {f"acc_{name}": percent(found, 2) if found else None for name, found in groups.items()},
    }
    parsed = {key: LETTERS.index(judged.understood) if judged.parsed else -1 for key, judged in samples.items()}
    return Scores(scores, "accuracy", "percent", samples, {"parsed": parsed})


def _groups(questions: Sequence[Question], samples: Samples) -> dict[str, list[Judged]]:
    """The official table's columns, and its topics."""

    def grade(question: Question) -> int:
        digits = question.tags["grade"].removeprefix("grade")
        return int(digits) if digits.isdecimal() else 0

    groups = {name: [q for q in questions if q.tags["subject"] == f"{name} science"] for name in _SUBJECTS}
    groups["has_text"] = [q for q in questions if q.tags["has_hint"] == "True"]
    groups["has_image"] = [q for q in questions if q.tags["has_image"] == "True"]
    groups["no_context"] = [q for q in questions if q.tags["has_hint"] == q.tags["has_image"] == "False"]
    groups["grade_1_6"] = [q for q in questions if 1 <= grade(q) <= 6]
    groups["grade_7_12"] = [q for q in questions if 7 <= grade(q) <= 12]
    groups["average"] = list(questions)
    groups |= {topic: [q for q in questions if q.tags["topic"] == topic] for topic in _TOPICS}
    return {name: [samples[question.id] for question in found] for name, found in groups.items()}
