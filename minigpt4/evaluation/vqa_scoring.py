"""The report of the official VQA evaluation (vqaEval.py of GT-Vision-Lab/VQA), for OK-VQA and VQAv2."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.evaluation.benchmark import Prediction, Question, Scorer, Scores
from minigpt4.evaluation.judging import Samples, by_tag, judge, per_question, percent
from minigpt4.evaluation.metrics.vqa import official_accuracy, original_accuracy
from minigpt4.evaluation.source import Row

_DIGITS, _MORE_DIGITS = 2, 6  # the official report's; those of the n=6 that it can be asked for


def vqa_scorers() -> dict[str, Scorer]:
    """official: GT-Vision-Lab's; original: MiniGPT-4's copy of it, which also gives `accuracy` with 6 digits."""
    return {"official": _scorer(official_accuracy), "original": _scorer(original_accuracy, _MORE_DIGITS)}


def _scorer(rule: Callable[[str, Sequence[str]], float], more_digits: int | None = None) -> Scorer:
    def scorer(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
        samples = judge(questions, predictions, lambda text, question: rule(text, question.reference))
        details: dict[str, Any] = {"per_question": per_question(samples, more_digits or _DIGITS)}
        if more_digits:
            details["accuracy"] = _report(questions, samples, more_digits)
        return Scores(_report(questions, samples, _DIGITS), "overall", "percent", samples, details)

    return scorer


def _report(questions: Sequence[Question], samples: Samples, digits: int) -> dict[str, Any]:
    groups = {"perQuestionType": "question_type", "perAnswerType": "answer_type"}
    return {
        "overall": percent(list(samples.values()), digits),
        **{
            name: {kind: percent(found, digits) for kind, found in by_tag(questions, samples, tag).items()}
            for name, tag in groups.items()
        },
    }


def with_annotations(rows: Sequence[Row], annotations: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs questions with the annotations of their `question_id`.

    Raises:
        UserError: a question has none.
    """
    by_id = {annotation.id("question_id"): annotation for annotation in annotations}
    for row in rows:
        if row.id("question_id") not in by_id:
            raise UserError(f"{row.place}: question {row.id('question_id')} has no annotation. Use files of one split.")
    return [(row, by_id[row.id("question_id")]) for row in rows]


def vqa_tags(annotation: Row) -> dict[str, str]:
    return {key: annotation.text(key) for key in ("question_type", "answer_type") if key in annotation}


def human_answers(annotation: Row) -> list[str]:
    answers = [answer.text("answer") for answer in annotation.rows("answers")]
    if not answers:
        raise UserError(f"{annotation.place}: 'answers' is empty. Name a file of a split that has answers.")
    return answers
