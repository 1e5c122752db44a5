"""Files of predictions: {"id", "prediction"} a line, made anywhere."""

from collections import Counter
from pathlib import Path
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Prediction, Question
from minigpt4.evaluation.source import Row, read_rows

_CHOICE = ("choice", "predicted_index")  # keys of the chosen candidate's number


def read_predictions(file: str | Path, benchmark: Benchmark, key: str = "--predictions") -> dict[str, Prediction]:
    """{question's id: answer} of JSON lines, or a JSON list.

    A line has an `id`, a question's or one of its aliases, and a `prediction` (or, as in our results, `answer` and
    `score`); of a ranking also `choice` (the number of the chosen candidate, counted from 0) or `ranking` (all numbers,
    the best first). Where one id stands for several questions (A-OKVQA), the line has their names as keys. A line that
    says it belongs to another benchmark (`dataset`) or `split` is left out.

    Raises:
        UserError: the file is missing or malformed, or an id unknown or given twice; it names the line.
    """
    if not Path(file).is_file():
        raise UserError(f'{key}: \'{file}\' is not a file. Set it to JSON lines of {{"id", "prediction"}}.')
    questions = {question.id: question for question in benchmark.questions}
    counts = Counter(alias for question in benchmark.questions for alias in question.aliases)
    aliases = {a: question for question in benchmark.questions for a in question.aliases if counts[a] == 1}
    found: dict[str, Prediction] = {}
    first: dict[str, str] = {}
    for row in read_rows(Path(file)):
        if _of_another(row, benchmark):
            continue
        own = row.id("id")
        named = {f"{own}#{name}": value for name, value in row.items() if f"{own}#{name}" in questions}
        question = questions.get(own) or aliases.get(own)
        if (question and ("prediction" in row or _ours(row))) or not named:
            if question is None and benchmark.extra == "ignore":
                continue
            if question is None:
                raise UserError(f"{row.place}: '{own}' is not a question's id in {benchmark.name}. Remove that line.")
            named[question.id] = _answer(row, question)
        for name, value in named.items():
            if value is None:  # not answered
                continue
            if name in found:
                raise UserError(f"{row.place}: '{own}' has a prediction already, in {first[name]}. Keep one of them.")
            found[name], first[name] = _checked(row, questions[name], value), row.place.rpartition(": ")[2]
    return found


def _ours(row: Row) -> bool:
    """Whether it is a line of an evaluation's result; questions have an answer too, the right one."""
    return "prediction" not in row and {"answer", "score"} <= row.keys()


def _of_another(row: Row, benchmark: Benchmark) -> bool:
    dataset, split = row.get("dataset"), row.get("split")
    if dataset in registry.names("benchmark") and dataset not in (benchmark.kind, benchmark.name):
        return True
    splits = {question.tags.get("split") for question in benchmark.questions}
    return split is not None and None not in splits and split not in splits


def _answer(row: Row, question: Question) -> Any:
    for key in _CHOICE if question.choices else ():
        if row.get(key) is not None:
            return row.index(key, len(question.choices))
    ranking = row.get("ranking")
    if question.choices and isinstance(ranking, list) and ranking:
        return ranking[0]
    return row["answer" if _ours(row) else "prediction"]


def _checked(row: Row, question: Question, value: Any) -> Prediction:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{row.place}: the prediction is {str(value)[:40]!r}, expected text.")
    if isinstance(value, float) or not question.choices:
        return str(value)
    if not 0 <= value < len(question.choices):
        raise UserError(f"{row.place}: candidate {value}, but there are {len(question.choices)}, counted from 0.")
    return value
