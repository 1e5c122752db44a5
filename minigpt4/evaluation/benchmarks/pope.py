"""POPE (Li et al. 2023): is an object in the picture? Objects that are not there are random, popular or adversarial."""

from collections.abc import Mapping, Sequence

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import by_tag, judge, percent
from minigpt4.evaluation.metrics.yes_no import counts, pope_answer, pope_scores, pope_scores_with_eps
from minigpt4.evaluation.source import Source

_PROMPT = "[vqa] {text} Answer yes or no."
_SPLITS = ("random", "popular", "adversarial")


@registry.register_benchmark("pope")
def pope(source: Source) -> Benchmark:
    """coco_pope_{split}.json, all splits if none is named; ids are split/question_id.

    official: evaluate.py of RUCAIBox/POPE, fractions. What it divides by zero is 0 here. `splits` holds what it prints;
    the splits themselves what its copies with 1e-6 in each divisor print.
    """
    template = source.template(_PROMPT, "text")
    files = source.split_files("coco_pope_*.json", under="coco")
    order = sorted(files, key=lambda split: (_SPLITS.index(split) if split in _SPLITS else len(_SPLITS), split))
    questions = [
        Question(
            f"{split}/{row.id('question_id')}",
            template.format(text=row.text("text")),
            (source.picture(row.text("image")),),
            row.text("label"),
            tags={"split": split},
            aliases=(f"{split}_{row.id('question_id')}",),
            place=row.place,
        )
        for split in order
        for row in source.rows(files[split])
    ]
    return Benchmark(questions, {"official": _official}, template)


def _judged(text: str, question: Question) -> Judged:
    said = pope_answer(text)
    return Judged(float(said == question.reference), understood=said)


def _official(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = judge(questions, predictions, _judged)
    parsed = {split: [s.understood for s in found] for split, found in by_tag(questions, samples, "split").items()}
    labels = {split: [q.reference for q in questions if q.tags["split"] == split] for split in parsed}
    found = {split: counts(said, labels[split]) for split, said in parsed.items()}
    splits = {split: {**count, **pope_scores(count)} for split, count in found.items()}
    scores = {
        **{split: pope_scores_with_eps(count) for split, count in found.items()},
        "average_f1": sum(split["f1_score"] for split in splits.values()) / len(splits),
        "average_accuracy": sum(split["accuracy"] for split in splits.values()) / len(splits),
    }
    details = {"splits": splits, "parsed": parsed, "accuracy": percent(list(samples.values())) / 100}
    return Scores(scores, "average_f1", "fraction", samples, details)
