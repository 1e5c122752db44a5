"""GQA (Hudson & Manning 2019): questions about scene graphs, one right answer each."""

from collections.abc import Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Prediction, Question, Scorer, Scores
from minigpt4.evaluation.judging import accuracy_scorer, judge, percent, text_of
from minigpt4.evaluation.metrics.gqa import report
from minigpt4.evaluation.prompts import SHORT
from minigpt4.evaluation.source import Row, Source, as_rows

_CHOICES = "*_choices.json"  # GQA's files of valid and plausible answers


@registry.register_benchmark("gqa")
def gqa(source: Source) -> Benchmark:
    """GQA's own file of questions, or the original's list of image, question, answer.

    official: the same string as the answer, with GQA's whole report where the file is its own (validity and
    plausibility where a file of choices lies beside it); original: the same after lower case, nothing stripped.
    """
    file = source.split_file("*_questions.json", "testdev_balanced")
    template = source.template(SHORT, "question")
    scorers = {
        "official": accuracy_scorer(lambda text, question: text == question.reference),
        "original": accuracy_scorer(lambda text, question: text.lower() == question.reference),
    }
    content = source.json(file)
    of_gqa = isinstance(content, dict)
    if of_gqa:
        rows = Row(content, str(file)).entries()
        choices = [Row(source.json(beside), str(beside)).entries() for beside in sorted(file.parent.glob(_CHOICES))]
        scorers["official"] = _official(rows, {key: row for entries in choices for key, row in entries.items()})
    else:
        listed = enumerate(as_rows(file, content))
        rows = {row.id("question_id") if "question_id" in row else str(i): row for i, row in listed}
    questions = [
        Question(
            key,
            template.format(question=row.text("question")),
            (source.picture(f"{row.text('imageId')}.jpg" if of_gqa else row.text("image")),),
            row.text("answer"),
            tags=_types(row) if of_gqa else {},
            place=row.place,
        )
        for key, row in rows.items()
    ]
    return Benchmark(questions, scorers, template, extra="ignore")


def _types(row: Row) -> dict[str, str]:
    """A question's types, after a look at all else that GQA's report reads."""
    row.require("isBalanced")
    if (groups := row.row("groups")).get("global") is not None:
        groups.text("global")
    for step in row.rows("semantic"):
        step.text("operation")
        step.text("argument")
    if row.get("entailed"):
        row.texts("entailed")
    types = row.row("types")
    return {name: types.text(name) for name in ("detailed", "semantic", "structural")}


def _listed(row: Row) -> dict[str, list[str]]:
    """What is a valid and what a plausible answer."""
    return {key: row.texts(key) for key in ("valid", "plausible")}


def _official(rows: Mapping[str, Row], choices: Mapping[str, Row]) -> Scorer:
    def scorer(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
        texts = {question.id: text_of(question, predictions[question.id]) for question in questions}
        known = {key: _listed(choices[key]) for key in texts if key in choices}
        balanced = [question for question in questions if rows[question.id]["isBalanced"]]
        samples = judge(balanced, predictions, lambda text, question: text == question.reference)
        percent(list(samples.values()))  # which says if there are none
        scores = report({key: rows[key] for key in texts}, texts, known if len(known) == len(texts) else None)
        name = "official_balanced" if len(balanced) == len(questions) else "official_all_with_consistency_and_choices"
        return Scores(scores, "accuracy", "percent", samples, published={name: scores})

    return scorer
