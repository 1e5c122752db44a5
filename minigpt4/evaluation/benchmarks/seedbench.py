"""SEED-Bench (Li et al. 2023): questions about pictures and videos with four lettered options, of twelve types."""

from collections.abc import Callable, Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import by_tag, judge, percent
from minigpt4.evaluation.metrics.options import first_letter
from minigpt4.evaluation.prompts import LETTERED, lettered
from minigpt4.evaluation.source import Row, Source

_TYPES = (
    *("Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location", "Instances Counting"),
    *("Spatial Relation", "Instance Interaction", "Visual Reasoning", "Text Understanding"),
    *("Action Recognition", "Action Prediction", "Procedure Understanding"),
)
_OF_IMAGES = 9  # the first of the types
_LETTERS = tuple("ABCD")


@registry.register_benchmark("seedbench")
def seedbench(source: Source) -> Benchmark:
    """SEED-Bench.json; pictures and videos are named by data_id.

    official: LLaVA's convert_seed_for_submission.py, the answer is the letter and nothing else; what is missing is
    wrong. lmms_eval: the first character of the stripped answer, in any case.
    """
    template = source.template(LETTERED, "hint", "question", "choices")
    questions = [_question(source, template, row) for row in source.listed(source.file("SEED-Bench.json"), "questions")]
    scorers = {"official": _official, "lmms_eval": _lmms_eval}
    return Benchmark(questions, scorers, template, missing="wrong")


def _question(source: Source, template: str, row: Row) -> Question:
    choices = [row.text(f"choice_{letter.lower()}") for letter in _LETTERS]
    number, file = row.index("question_type_id", len(_TYPES) + 1), source.picture(row.id("data_id"))
    return Question(
        row.id("question_id"),
        lettered(template, "", row.text("question"), choices),
        (file,) if number <= _OF_IMAGES else (),
        row.text("answer"),
        _LETTERS,
        {"type_id": str(number), "type": _TYPES[number - 1], "data": "image" if number <= _OF_IMAGES else "video"},
        videos=(file,) if number > _OF_IMAGES else (),
        place=row.place,
    )


def _rule(letter_of: Callable[[str], str | None]) -> Callable[[str, Question], Judged]:
    def judged(text: str, question: Question) -> Judged:
        letter = letter_of(text)
        parsed = letter in _LETTERS
        return Judged(float(letter == question.reference), parsed, letter if parsed else None)

    return judged


def _official(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = judge(questions, predictions, _rule(str))
    types, data = by_tag(questions, samples, "type"), by_tag(questions, samples, "data")
    scores = {name: percent(types[name], 2) for name in _TYPES if name in types}
    scores["Total accuracy"] = percent(list(samples.values()), 2)
    scores |= {f"{kind} accuracy": percent(found, 2) for kind, found in data.items()}
    return Scores(scores, "Total accuracy", "percent", samples)


def _lmms_eval(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = judge(questions, predictions, _rule(first_letter))
    scores = {number: percent(found) for number, found in by_tag(questions, samples, "type_id").items()}
    return Scores(scores | {"all": percent(list(samples.values()))}, "all", "percent", samples)
