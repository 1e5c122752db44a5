"""MME (Fu et al. 2023): two questions a picture, one with the answer yes and one with no, in 14 tasks."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scorer, Scores
from minigpt4.evaluation.judging import judge, percent
from minigpt4.evaluation.metrics.yes_no import lmms_eval_mme_answer, mme_answer
from minigpt4.evaluation.source import Source, read_text

_PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_TASKS = (*_PERCEPTION, *_COGNITION)
_PROMPT = "[vqa] {question}"
_ENDINGS = (".jpg", ".png")
_Line = tuple[str, str, str, str, str]  # task, name of the picture, question, answer, place


@registry.register_benchmark("mme")
def mme(source: Source) -> Benchmark:
    """The published folder, {task}/{picture}.txt or {task}/questions_answers_YN/{picture}.txt: two lines, a question,
    a tab, and yes or no; or {task}.txt with the picture's name in front; or mme_test.jsonl.

    official: the authors' calculation.py, yes or no within the first four characters; lmms_eval: the same after full
    stops and outer spaces are gone, where y and n count too. In points: the percentage of right answers plus that of
    pictures with both right, for each task; perception is the sum of ten tasks, cognition of four.
    """
    template = source.template(_PROMPT, "question")
    questions: list[Question] = []
    numbers: dict[tuple[str, str], int] = defaultdict(int)
    for task, name, text, answer, place in _lines(source):
        numbers[task, name] += 1
        stem, gold = f"{task}/{Path(name).stem}", answer.strip().lower()
        tags = {"task": task, "picture": stem}
        files = [source.picture(f"{task}/{part}{Path(name).stem}{end}") for part in ("", "images/") for end in _ENDINGS]
        picture = next((file for file in files if file.is_file()), files[0])
        aliases = (f"{stem}{end}#{mark}" for end in _ENDINGS for mark in (numbers[task, name], answer.strip()))
        prompt, key = template.format(question=text), f"{stem}#{numbers[task, name]}"
        questions.append(Question(key, prompt, (picture,), gold, tags=tags, aliases=(*aliases,), place=place))
    return Benchmark(questions, {"official": _scorer(mme_answer), "lmms_eval": _scorer(lmms_eval_mme_answer)}, template)


def _lines(source: Source) -> Iterator[_Line]:
    listed = source.optional_file("mme_test.jsonl")
    for row in source.rows(listed) if listed else ():
        yield row.text("category"), row.text("image"), row.text("question"), row.text("answer"), row.place
    for task in _TASKS if listed is None else ():
        if (table := source.path / f"{task}.txt").is_file():
            yield from ((task, *cells, place) for *cells, place in _cells(source.noted(table), 3))  # type: ignore[misc]
        folder = source.path / task / "questions_answers_YN"
        for file in sorted((folder if folder.is_dir() else source.path / task).glob("*.txt")):
            yield from ((task, file.stem, *cells, place) for *cells, place in _cells(source.noted(file), 2))  # type: ignore[misc]


def _cells(file: Path, count: int) -> Iterator[list[str]]:
    """The first cells of each line, and its place."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        cells, place = line.split("\t"), f"{file}: line {number}"
        if line.strip():
            if len(cells) < count or cells[count - 1].strip().lower() not in ("yes", "no"):
                raise UserError(f"{place}: {line[:60]!r} is not a question, a tab, and Yes or No.")
            yield [*cells[:count], place]


def _scorer(answer_of: Callable[[str], str]) -> Scorer:
    def judged(text: str, question: Question) -> Judged:
        said = answer_of(text)
        return Judged(float(said == question.reference), said != "other", said)

    def scorer(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
        samples = judge(questions, predictions, judged)
        tasks = {}
        for task in dict.fromkeys(question.tags["task"] for question in questions):
            own = [question for question in questions if question.tags["task"] == task]
            pictures = defaultdict(list)
            for question in own:
                pictures[question.tags["picture"]].append(samples[question.id].value)
            both = [float(all(values)) for values in pictures.values()]
            tasks[task] = percent([samples[question.id] for question in own]) + percent(both)
        sums = [sum(points for task, points in tasks.items() if task in part) for part in (_PERCEPTION, _COGNITION)]
        scores = {"perception": sums[0], "cognition": sums[1], "total": sum(sums), "tasks": tasks}
        details = {"acc_and_acc_plus": tasks, "parsed": [samples[question.id].understood for question in questions]}
        return Scores(scores, "perception", "points", samples, details)

    return scorer
