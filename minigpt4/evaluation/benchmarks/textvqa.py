"""TextVQA (Singh et al. 2019): questions about text in pictures, ten human answers each."""

from collections.abc import Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Prediction, Question, Scores
from minigpt4.evaluation.judging import judge, per_question, percent
from minigpt4.evaluation.metrics.vqa import evalai_accuracy
from minigpt4.evaluation.prompts import SHORT
from minigpt4.evaluation.source import Source


@registry.register_benchmark("textvqa")
def textvqa(source: Source) -> Benchmark:
    """TextVQA_0.5.1_val.json. official: TextVQAAccuracyEvaluator of mmf's M4C, as LLaVA uses it."""
    template = source.template(SHORT, "question")
    questions = [
        Question(
            row.id("question_id"),
            template.format(question=row.text("question")),
            (source.picture(f"{row.id('image_id')}.jpg"),),
            row.texts("answers"),
            place=row.place,
        )
        for row in source.listed(source.split_file("TextVQA_0.5.1_*.json", "val"), "data")
    ]
    return Benchmark(questions, {"official": _official}, template)


def _official(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = judge(questions, predictions, lambda text, question: evalai_accuracy(text, question.reference))
    accuracy = percent(list(samples.values()))
    details = {"accuracy_full_precision": accuracy, "per_question": per_question(samples)}
    return Scores({"accuracy": accuracy}, "accuracy", "percent", samples, details)
