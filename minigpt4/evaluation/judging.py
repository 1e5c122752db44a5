"""What the scorers of several benchmarks share."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.evaluation.benchmark import Judged, Prediction, Question, Scorer, Scores

Samples = dict[str, Judged]
Rule = Callable[[str, Question], Judged | float]  # of an answer's text


def text_of(question: Question, prediction: Prediction) -> str:
    """A prediction's text; of a chosen candidate the candidate's."""
    return question.choices[prediction] if isinstance(prediction, int) else prediction


def judge(questions: Sequence[Question], predictions: Mapping[str, Prediction], rule: Rule) -> Samples:
    """Judges each answer by a rule; what is missing is wrong."""
    found: Samples = {}
    for question in questions:
        if (prediction := predictions.get(question.id)) is None:
            found[question.id] = Judged(0.0, parsed=False)
            continue
        judged = rule(text_of(question, prediction), question)
        found[question.id] = judged if isinstance(judged, Judged) else Judged(float(judged))
    return found


def percent(values: Sequence[float] | Sequence[Judged], digits: int | None = None) -> float:
    """The mean in percent.

    Raises:
        UserError: there is no value.
    """
    if not values:
        raise UserError("no question counts for this score, so there is none. Score other questions, or more of them.")
    numbers = [value.value if isinstance(value, Judged) else value for value in values]
    mean = 100 * sum(numbers) / len(numbers)
    return mean if digits is None else round(mean, digits)


def by_tag(questions: Sequence[Question], samples: Samples, tag: str) -> dict[str, list[Judged]]:
    """{a tag's value: the samples that have it}, in the order of the questions."""
    found = defaultdict(list)
    for question in questions:
        if tag in question.tags and question.id in samples:
            found[question.tags[tag]].append(samples[question.id])
    return dict(found)


def accuracy_scorer(rule: Rule) -> Scorer:
    """A scorer whose only score is the mean in percent, under the name accuracy."""

    def scorer(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
        samples = judge(questions, predictions, rule)
        return Scores({"accuracy": percent(list(samples.values()))}, "accuracy", "percent", samples)

    return scorer


def per_question(samples: Samples, digits: int | None = None) -> dict[str, Any]:
    """{id: value in percent}."""
    return {key: percent([judged], digits) for key, judged in samples.items()}
