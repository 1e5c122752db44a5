"""Hateful Memes (Kiela et al. 2020): is a meme, picture and words together, hateful?"""

from collections.abc import Mapping, Sequence

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import accuracy_scorer, judge, percent, text_of
from minigpt4.evaluation.source import Source

_PROMPT = (
    "This is an image writting '{text}'. Is this image hateful? Answer yes or no. Answer:"  # as the original has it
)
_LABELS = {"yes": 1, "no": 0}


@registry.register_benchmark("hm")
def hm(source: Source) -> Benchmark:
    """dev.jsonl. official and original are the original's rule: yes is 1, no is 0, anything else wrong.

    challenge is the metric of the challenge, AUROC, on predictions that are the probability of being hateful.
    """
    template = source.template(_PROMPT, "text")
    questions = [
        Question(
            row.id("id"),
            template.format(text=row.text("text")),
            (source.picture(row.text("img")),),
            row.index("label", 2),
            place=row.place,
        )
        for row in source.rows(source.split_file("*.jsonl", "dev"))
    ]
    rule = accuracy_scorer(_judged)
    scorers = {"official": rule, "original": rule, "challenge": _challenge}
    return Benchmark(questions, scorers, template, score_only=("challenge",))


def _judged(text: str, question: Question) -> Judged:
    label = _LABELS.get(text.strip().lower())
    return Judged(float(label == question.reference), label is not None, label)


def _challenge(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    from sklearn.metrics import roc_auc_score

    said = [_probability(text_of(question, predictions[question.id]), question) for question in questions]
    samples = judge(questions, predictions, lambda text, q: float((float(text) >= 0.5) == q.reference))
    gold = [question.reference for question in questions]
    if len(set(gold)) < 2:
        raise UserError("hm: AUROC needs memes of both labels. Score more questions.")
    scores = {"auroc": float(roc_auc_score(gold, said)), "accuracy": percent(list(samples.values()))}
    return Scores(scores, "auroc", "fraction", samples)


def _probability(text: str, question: Question) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"hm: '{question.id}': the scorer challenge needs a probability from 0 to 1, not '{text}'.")
    return value
