"""VSR (Liu et al. 2023): is a statement about where things are true of the picture?"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import Rule, by_tag, judge, percent
from minigpt4.evaluation.source import Source

_PROMPT = "[vqa] Based on the image, is this statement true or false? {caption}"
_LABELS = ("false", "true")


@registry.register_benchmark("vsr")
def vsr(source: Source) -> Benchmark:
    """test.jsonl of the published zero-shot split, or that data set's name on the hub, as in the original's config.

    official and original are the original's rule: the answer in lower case is true or false, and right. by_relation is
    the authors' report on predictions that are 0 or 1 (their eval_compute_acc_by_rel.py).
    """
    template = source.template(_PROMPT, "caption")
    questions = [
        Question(
            str(number),
            template.format(caption=row.text("caption")),
            (source.picture(row.text("image")),),
            _LABELS[row.index("label", 2)],
            tags={"relation": row.text("relation")} if "relation" in row else {},
            place=row.place,
        )
        for number, row in enumerate(source.rows(_file(source)))
    ]
    return Benchmark(questions, {"official": _text, "original": _text, "by_relation": _numbers}, template)


def _file(source: Source) -> Path:
    """The split's file; from the hub's cache, or the hub, where `eval_file_path` is a data set's name there."""
    name = source.block.eval_file_path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        return source.split_file("*.jsonl", "test")
    from huggingface_hub import hf_hub_download

    split = source.split(("train", "dev", "test")) or "test"
    try:
        return Path(hf_hub_download(name, f"{split}.jsonl", repo_type="dataset"))
    except Exception as error:  # of many kinds
        raise UserError(
            f"{source.key('eval_file_path')}: '{name}' is not a file, and can't be had from the hub "
            f"({first_line(error)}). Set it to {split}.jsonl."
        ) from None


def _text(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    return _scores(questions, predictions, lambda text, question: _judged(text.lower(), question))


def _numbers(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    labels = dict(zip("01", _LABELS, strict=True))
    return _scores(questions, predictions, lambda text, question: _judged(labels.get(text.strip()), question))


def _judged(said: str | None, question: Question) -> Judged:
    parsed = said in _LABELS
    return Judged(float(said == question.reference), parsed, said if parsed else None)


def _scores(questions: Sequence[Question], predictions: Mapping[str, Prediction], rule: Rule) -> Scores:
    samples = judge(questions, predictions, rule)
    accuracy = percent(list(samples.values()))
    relations = {
        name: [round(percent(found) / 100, 4), len(found)]
        for name, found in by_tag(questions, samples, "relation").items()
    }
    return Scores(
        {"accuracy": accuracy, "by_relation": relations}, "accuracy", "percent", samples, {"overall": accuracy}
    )
