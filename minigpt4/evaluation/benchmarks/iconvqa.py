"""IconQA (Lu et al. 2021): questions about icons, answered by one of several candidates."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import Samples, percent
from minigpt4.evaluation.prompts import SHORT
from minigpt4.evaluation.source import Row, Source

_LIST = "choose_text_val.json"
_TEXT = "choose_txt"


@registry.register_benchmark("iconvqa")
def iconvqa(source: Source) -> Benchmark:
    """The original's choose_text_val.json, or a folder with IconQA's problems.json, pid_splits.json, pid2skills.json.

    original: the best-ranked candidate is the answer, over the questions with candidates in text. official: the same
    on the original's file; on IconQA's the report of its sub_acc.py, by kind of task and by skill. A task whose
    candidates are pictures shows them after the picture, and its candidates are their numbers, from 0.
    """
    template = source.template(SHORT, "question")
    problems = source.folder / "problems.json"
    if source.path.is_file() or not problems.is_file():
        rows = source.rows(source.file(_LIST))
        questions = [
            _question(source, template, row, row.id("image_id"), f"{row.id('image_id')}/image.png") for row in rows
        ]
        return Benchmark(questions, {"official": _accuracy, "original": _accuracy}, template, method="rank")
    files = (problems, source.folder / "pid2skills.json", source.folder / "pid_splits.json")
    entries, skills, splits = (Row(source.json(file), str(file)) for file in files)
    split = source.split(("train", "val", "test", "minival")) or "val"
    questions = [
        _problem(source, template, entries.row(key), key, f"{split}/{task}", skills.texts(key) if key in skills else [])
        for task in (_TEXT, "choose_img", "fill_in_blank")
        for key in (splits.texts(f"{task}_{split}") if f"{task}_{split}" in splits else ())
    ]
    return Benchmark(questions, {"official": _sub_accuracies, "original": _accuracy}, template, method="rank")


def _question(source: Source, template: str, row: Row, key: str, picture: str, **more: Any) -> Question:
    choices = row.texts("choices")
    answer = row.index("answer", len(choices))
    prompt = template.format(question=row.text("question"))
    return Question(key, prompt, (source.picture(picture),), answer, tuple(choices), place=row.place, **more)


def _problem(source: Source, template: str, row: Row, key: str, folder: str, skills: list[str]) -> Question:
    """One of IconQA's own; where its pictures lie is as the data set is published."""
    task, pictures = folder.split("/")[1], source.picture(f"{folder}/{key}")
    tags = {"task": task, "skills": ",".join(skills)}
    if task == _TEXT:
        return _question(source, template, row, key, f"{folder}/{key}/image.png", tags=tags)
    prompt = template.format(question=row.text("question"))
    choices = row.texts("choices") if task == "choose_img" else []
    files = (pictures / "image.png", *(pictures / name for name in choices))
    numbers = tuple(map(str, range(len(files) - 1)))
    return Question(key, prompt, files, row["answer"], numbers, tags=tags, place=row.place)


def _judged(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Samples:
    """A number is compared as it is: two candidates may have the same text."""
    found = {}
    for question in questions:
        said: Any = predictions[question.id]
        if isinstance(said, str) and said in question.choices:
            said = question.choices.index(said)
        parsed = isinstance(said, int) or not question.choices
        found[question.id] = Judged(float(str(said) == str(question.reference)), parsed, said if parsed else None)
    return found


def _accuracy(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = _judged([q for q in questions if q.tags.get("task", _TEXT) == _TEXT], predictions)
    return Scores({"accuracy": percent(list(samples.values()))}, "accuracy", "percent", samples)


def _sub_accuracies(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    samples = _judged(questions, predictions)
    groups = defaultdict(list)
    for question in questions:
        for group in ("TotalAcc", question.tags["task"], *filter(None, question.tags["skills"].split(","))):
            groups[group].append(samples[question.id])
    scores = {name: percent(found, 2) for name, found in groups.items()}
    text = [sample for q in questions if q.tags["task"] == _TEXT for sample in [samples[q.id]]]
    details = {"accuracy": percent(text)} if text else {}
    return Scores(scores, "TotalAcc", "percent", samples, details)
