"""VizWiz-VQA (Gurari et al. 2018): questions of blind people about pictures that they took, ten human answers each."""

from collections.abc import Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Prediction, Question, Scores
from minigpt4.evaluation.judging import accuracy_scorer, by_tag, judge, per_question, percent
from minigpt4.evaluation.metrics.vqa import evalai_accuracy, third_accuracy
from minigpt4.evaluation.source import Source
from minigpt4.evaluation.vqa_scoring import human_answers, vqa_tags

_PROMPT = (
    "[vqa] The question is '{question}' Based on the image, answer the question with a single word or phrase. "
    "and reply 'unanswerable' when the provided information is insufficient"
)


@registry.register_benchmark("vizwiz")
def vizwiz(source: Source) -> Benchmark:
    """val.json. official: as lmms-eval scores it; original: equal answers / 3, in lower case, nothing stripped.

    The original joins the humans' answers by "_" and splits them again, so its scorer does too.
    """
    template = source.template(_PROMPT, "question")
    questions = [
        Question(
            row.text("image"),
            template.format(question=row.text("question")),
            (source.picture(row.text("image")),),
            human_answers(row),
            tags=vqa_tags(row),
            place=row.place,
        )
        for row in source.rows(source.split_file("*.json", "val"))
    ]
    return Benchmark(questions, {"official": _official, "original": accuracy_scorer(_original)}, template)


def _original(text: str, question: Question) -> float:
    return third_accuracy(text.lower(), "_".join(question.reference).lower().split("_"))


def _official(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = judge(questions, predictions, lambda text, question: evalai_accuracy(text, question.reference))
    types = {kind: percent(found) for kind, found in by_tag(questions, samples, "answer_type").items()}
    scores = {"overall": percent(list(samples.values())), "perAnswerType": types}
    return Scores(scores, "overall", "percent", samples, {"per_question": per_question(samples)})
