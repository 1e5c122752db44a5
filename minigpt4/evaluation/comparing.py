"""Two results side by side: is one better, how sure is that, and which samples make the difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.evaluation.manifest import SAME_QUESTIONS, differences
from minigpt4.evaluation.results import Result
from minigpt4.evaluation.statistics import Estimate, estimate

# what may explain a difference, besides the model
_BEYOND = ("template", "preprocess", "dtype", "condition", "packages", "device")


@dataclass(frozen=True)
class Comparison:
    """Result B minus result A, over the questions that both have.

    Attributes:
        difference: of the means, with its interval from paired values: a question counts by its own difference.
        better, worse: the ids of questions whose score rose or fell.
        only_a, only_b: how many questions one alone has.
        warnings: what differs between the manifests, and should not where the models alone are to be compared.
    """

    a: Result
    b: Result
    difference: Estimate
    better: list[str]
    worse: list[str]
    only_a: int
    only_b: int
    warnings: list[str]

    def json(self) -> dict[str, Any]:
        """All of it, without the results."""
        return {
            "a": str(self.a.folder),
            "b": str(self.b.folder),
            "mean_a": self.a.scores["mean"],
            "mean_b": self.b.scores["mean"],
            "difference": self.difference.json(),
            "better": self.better,
            "worse": self.worse,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "warnings": self.warnings,
        }


def compare(a: Result, b: Result) -> Comparison:
    """Compares two results of one benchmark.

    Raises:
        UserError: they have no question in common.
    """
    first, second = a.values, b.values
    both = [key for key in first if key in second]
    if not both:
        raise UserError(f"'{a.folder}' and '{b.folder}' have no question in common. Compare results of one benchmark.")
    if a.manifest["benchmark"]["prompt"] == b.manifest["benchmark"]["prompt"]:  # else one asks by another template
        prompts_a, prompts_b = ({p["id"]: p["prompt"] for p in result.predictions} for result in (a, b))
        others = [key for key in both if prompts_a.get(key) != prompts_b.get(key)]
        if others:
            raise UserError(
                f"'{a.folder}' and '{b.folder}' ask different questions under one id ({len(others)}, such as "
                f"'{others[0]}'). Compare results of one benchmark."
            )
    changes = {key: second[key] - first[key] for key in both}
    warnings = [
        *differences(a.manifest, b.manifest, SAME_QUESTIONS),
        *differences(a.manifest, b.manifest, _BEYOND),
    ]
    return Comparison(
        a,
        b,
        estimate(list(changes.values())),
        [key for key, change in changes.items() if change > 0],
        [key for key, change in changes.items() if change < 0],
        len(first) - len(both),
        len(second) - len(both),
        warnings,
    )


def described(comparison: Comparison, most: int = 10) -> str:
    """A comparison as text, with at most so many flipped samples each way."""
    own = comparison
    difference, predictions = own.difference, ({p["id"]: p for p in result.predictions} for result in (own.a, own.b))
    answers_a, answers_b = predictions
    lines = [
        f"A {own.a.title}: {_percent(own.a.scores['mean'])}",
        f"B {own.b.title}: {_percent(own.b.scores['mean'])}",
        f"B - A: {100 * difference.mean:+.2f} points, 95 % interval {100 * difference.low:+.2f} to "
        f"{100 * difference.high:+.2f} (paired, {len(own.a.values) - own.only_a} questions): "
        + ("the difference may be chance" if difference.low <= 0 <= difference.high else "more than chance"),
        f"{len(own.better)} better, {len(own.worse)} worse",
    ]
    for what, keys in (("better", own.better), ("worse", own.worse)):
        lines += [
            f"  {what} {key}: {_short(answers_a[key]['answer'])} -> {_short(answers_b[key]['answer'])}"
            f" (reference {_short(answers_a[key]['reference'])})"
            for key in keys[:most]
            if key in answers_a and key in answers_b
        ]
        lines += [f"  {what}: {len(keys) - most} more"] if len(keys) > most else []
    if own.only_a or own.only_b:
        lines.append(f"warning: {own.only_a} questions are in A alone and {own.only_b} in B alone; they are left out")
    lines += [f"warning: {line}" for line in own.warnings]
    return "\n".join(lines) + "\n"


def _percent(mean: Mapping[str, Any]) -> str:
    low, high = mean["interval_95"]
    return f"{100 * mean['mean']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
