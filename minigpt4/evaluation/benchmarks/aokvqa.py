"""A-OKVQA (Schwenk et al. 2022): questions that need knowledge, answered directly and by choice."""

from collections.abc import Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Prediction, Question, Scores
from minigpt4.evaluation.judging import judge, percent
from minigpt4.evaluation.metrics.vqa import third_accuracy
from minigpt4.evaluation.prompts import SHORT
from minigpt4.evaluation.source import Row, Source

_DIRECT, _CHOICE = "direct_answer", "multiple_choice"


@registry.register_benchmark("aokvqa")
def aokvqa(source: Source) -> Benchmark:
    """aokvqa_v1p0_val.json. Each question is asked twice: its ids end in #direct_answer and #multiple_choice.

    official: eval_predictions.py of allenai/aokvqa. Direct: equal answers / 3, without the questions that are marked as
    difficult to answer directly; choice: the right one's text. What is missing is wrong.
    """
    template = source.template(SHORT, "question")
    rows = source.rows(source.split_file("aokvqa_v1p0_*.json", "val"))
    questions = [question for row in rows for question in _questions(source, template, row)]
    return Benchmark(questions, {"official": _official}, template, method="rank", missing="wrong")


def _questions(source: Source, template: str, row: Row) -> list[Question]:
    key, prompt = row.id("question_id"), template.format(question=row.text("question"))
    pictures, choices = (source.picture(f"{row.id('image_id'):0>12}.jpg"),), tuple(row.texts("choices"))
    right = choices[row.index("correct_choice_idx", len(choices))]
    choice = Question(f"{key}#{_CHOICE}", prompt, pictures, right, choices, {"type": _CHOICE}, place=row.place)
    tags, answers = {"type": _DIRECT, "difficult": str(row.get("difficult_direct_answer"))}, row.texts("direct_answers")
    direct = Question(f"{key}#{_DIRECT}", prompt, pictures, answers, tags=tags, aliases=(key,), place=row.place)
    return [direct, choice]


def _official(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    direct = [q for q in questions if q.tags["type"] == _DIRECT and q.tags["difficult"] != "True"]
    choice = [q for q in questions if q.tags["type"] == _CHOICE]
    samples = judge(direct, predictions, lambda text, question: third_accuracy(text, question.reference))
    values = {key: judged.value for key, judged in samples.items()}
    scores = {_DIRECT: percent(list(values.values()))} if values else {}
    if choice:
        chosen = judge(choice, predictions, lambda text, question: text == question.reference)
        scores[_CHOICE] = percent(list(chosen.values()))
        samples |= chosen
    main = _DIRECT if values else _CHOICE
    return Scores(scores, main, "percent", samples, units=values or None)
