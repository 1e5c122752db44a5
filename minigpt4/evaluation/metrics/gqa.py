"""GQA's report (Hudson & Manning 2019; eval.py of the authors), from questions as the data set has them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

Questions = Mapping[str, Mapping[str, Any]]
_COMMON = ("color", "material", "shape")  # answers that a question after what is common may have
_NO_STEPS = ("exist", "query: name", "choose name")  # operations that are not counted as a step


def report(questions: Questions, predictions: Mapping[str, str], choices: Questions | None = None) -> dict[str, Any]:
    """Scores in percent, rounded to 2 digits as the official code prints them.

    An answer is right where it is the same string; case and punctuation count. What counts is the balanced questions,
    others only for consistency.

    Args:
        questions: {id: an entry of GQA's file of questions}.
        predictions: {id: answer} of each.
        choices: {id: {"valid": [...], "plausible": [...]}}; without them validity and plausibility are left out.

    Returns:
        binary, open, accuracy, validity, plausibility, consistency (left out where no right answer entails another
        question), distribution, and {group: [accuracy, number]} by four properties.
    """
    balanced = {key: question for key, question in questions.items() if question["isBalanced"]}
    right = {key: predictions[key] == question["answer"] for key, question in questions.items()}
    found: dict[str, Any] = {
        "binary": _percent([right[k] for k, q in balanced.items() if q["types"]["structural"] != "query"]),
        "open": _percent([right[k] for k, q in balanced.items() if q["types"]["structural"] == "query"]),
        "accuracy": _percent([right[k] for k in balanced]),
        "consistency": _consistency(questions, right),
    }
    if choices is not None:
        for name, key in (("validity", "valid"), ("plausibility", "plausible")):
            found[name] = _percent([_belongs(predictions[k], choices[k][key], q) for k, q in balanced.items()])
    found["distribution"] = round(_distribution(balanced, predictions), 2)
    groups: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "structural type": lambda question: question["types"]["structural"],
        "semantic type": lambda question: question["types"]["semantic"],
        "steps number": _steps,
        "words number": lambda question: len(question["question"].split()),
    }
    for name, group_of in groups.items():
        found[f"Accuracy / {name}"] = _by_group(balanced, right, group_of)
    return {name: score for name, score in found.items() if score is not None}


def _percent(values: list[bool] | list[float]) -> float | None:
    return round(100 * sum(values) / len(values), 2) if values else None


def _belongs(prediction: str, group: list[str], question: Mapping[str, Any]) -> bool:
    return prediction in (_COMMON if "Common" in question["types"]["detailed"] else group)


def _consistency(questions: Questions, right: Mapping[str, bool]) -> float | None:
    """Over right answers that entail other questions: the mean accuracy on those."""
    shares = []
    for key, question in questions.items():
        entailed = [other for other in question.get("entailed", ()) if other != key and other in right]
        if right[key] and entailed:
            shares.append(sum(right[other] for other in entailed) / len(entailed))
    return _percent(shares)


def _distribution(questions: Questions, predictions: Mapping[str, str]) -> float:
    """The chi-square distance of answers from the gold ones, within global groups, weighted by the groups' sizes."""
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for key, question in questions.items():
        if (group := question["groups"]["global"]) is not None:
            gold[group][question["answer"]] += 1
            said[group][predictions[key]] += 1
    total = sum(counter.total() for counter in gold.values())
    weighted = 0.0
    for group, expected in gold.items():
        distance = sum((said[group][answer] - count) ** 2 / count for answer, count in expected.items())
        weighted += distance * expected.total()
    return weighted / total / 100 if total else 0.0


def _steps(question: Mapping[str, Any]) -> int:
    """Operations of the question's program, but for those that only ask."""
    names = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
    return sum(not any(idle in name for idle in _NO_STEPS) for name in names)


def _by_group(
    questions: Questions, right: Mapping[str, bool], group_of: Callable[[Mapping[str, Any]], Any]
) -> dict[str, list[float]]:
    groups: dict[Any, list[bool]] = defaultdict(list)
    for key, question in questions.items():
        groups[group_of(question)].append(right[key])
    return {str(name): [round(100 * sum(hits) / len(hits), 2), len(hits)] for name, hits in sorted(groups.items())}
