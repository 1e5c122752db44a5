"""GQA (Hudson & Manning 2019): questions about scene graphs, one right answer each."""

from collections.abc import Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Prediction, Question, Scorer, Scores
from minigpt4.evaluation.judging import accuracy_scorer, judge, text_of
from minigpt4.evaluation.metrics.gqa import report
from minigpt4.evaluation.prompts import SHORT
from minigpt4.evaluation.source import Row, Source, read_json, read_rows

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
    data = None if _is_list(file) else read_json(file)
    if data is None:
        rows = {row.id("question_id") if "question_id" in row else str(i): row for i, row in enumerate(read_rows(file))}
    else:
        whole = Row(data, str(file))
        rows = {key: whole.row(key) for key in whole}
        for row in rows.values():
            row.require("isBalanced", "groups", "semantic")
        scorers["official"] = _official(data, [read_json(beside) for beside in sorted(file.parent.glob(_CHOICES))])
    questions = [
        Question(
            key,
            template.format(question=row.text("question")),
            (source.picture(row.text("image") if data is None else f"{row.text('imageId')}.jpg"),),
            row.text("answer"),
            tags={} if data is None else row.row("types").data,
            place=row.place,
        )
        for key, row in rows.items()
    ]
    return Benchmark(questions, scorers, template, extra="ignore")


def _official(data: Mapping[str, Row], choices: list[Mapping[str, Row]]) -> Scorer:
    def scorer(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
        texts = {question.id: text_of(question, predictions[question.id]) for question in questions}
        asked = {key: data[key] for key in texts}
        known = {key: entry for file in choices for key, entry in file.items() if key in asked}
        scores = report(asked, texts, known if len(known) == len(asked) else None)
        balanced = [question for question in questions if data[question.id]["isBalanced"]]
        samples = judge(balanced, predictions, lambda text, question: text == question.reference)
        name = "official_balanced" if len(balanced) == len(questions) else "official_all_with_consistency_and_choices"
        return Scores(scores, "accuracy", "percent", samples, published={name: scores})

    return scorer


def _is_list(file) -> bool:
    with open(file, encoding="utf-8-sig") as start:
        return start.read(100).lstrip().startswith("[")
