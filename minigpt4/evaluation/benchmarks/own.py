"""Questions and answers of one's own: a benchmark without code."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.conversation.conversation import Conversation, Turn, rewritten
from minigpt4.datasets.formats.records.files import image_folder, read_records, record_id
from minigpt4.datasets.formats.records.parse import parse_record
from minigpt4.datasets.formats.records.record import IMAGE_MARKER, VIDEO_MARKER, RecordError, split_leading
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scorer, Scores
from minigpt4.evaluation.judging import Rule, by_tag, judge
from minigpt4.evaluation.metrics.exact import chosen, exact_match
from minigpt4.evaluation.metrics.options import LETTERS
from minigpt4.evaluation.metrics.vqa import official_accuracy
from minigpt4.evaluation.prompts import lettered
from minigpt4.evaluation.source import Row, Source, as_rows

_ANY_TYPE = "all"  # of a question without one
_OVERALL = "overall"  # the score of all types
_HUMANS = 10  # so many answers are people's, who may disagree
_PLAIN, _LETTERED = (
    "{question}",
    "{question}\n{choices}\nAnswer with the option's letter from the given choices directly.",
)


@registry.register_benchmark("own")
def own(source: Source) -> Benchmark:
    """JSON lines, a JSON list or Parquet of {question, answer or answers} with any of image, images, video, type (or
    question_type), choices and id; or of the records that training reads, whose last answer is the reference.

    With choices the answer is a choice's text, number or letter. Scorers: exact (the answer is one of those given, by
    case, spaces and a full stop at the end no different), vqa (VQA accuracy), choice; official takes choice where there
    are choices, vqa where there are ten answers, else exact. Scores are fractions, by type, and overall.
    """
    file = source.path
    if file.is_dir():
        raise UserError(f"{source.key('eval_file_path')}: '{file}' is a folder. Set it to a file of questions.")
    if file.suffix == ".parquet":
        rows = as_rows(file, read_records("eval_file_path", str(source.noted(file))))
    else:
        rows = source.rows(file)
    generated = source.block.method == "generate"
    templates = [source.template(text, "question", "choices") for text in (_PLAIN, _LETTERED if generated else _PLAIN)]
    folder = image_folder(file, source.block.img_path)
    questions = [_question(row, record_id(row.data, i), folder, templates) for i, row in enumerate(rows)]
    for question in questions if source.block.scorer == "choice" else ():
        if not question.choices:
            raise UserError(
                f"{question.place}: it has no choices, which {source.key('scorer')}=choice needs. Set it to official."
            )
    scorers = {"official": _scorer(_any), "exact": _scorer(_exact), "vqa": _scorer(_vqa), "choice": _scorer(_choice)}
    return Benchmark(questions, scorers, templates[0], method="rank")


def _question(row: Row, key: str, folder: Path, templates: list[str]) -> Question:
    said = row.get("question")
    if not isinstance(said, str) or IMAGE_MARKER in said or VIDEO_MARKER in said:
        return _record(row, key, folder, templates[0])
    choices = tuple(row.texts("choices")) if row.get("choices") is not None else ()
    named = [_names(row, one) + _names(row, f"{one}s") for one in ("image", "video")]
    named[0] = named[0] or _names(row, "image_id")
    return Question(
        key,
        lettered(templates[bool(choices)], "", said, choices),
        tuple(_picture(name, folder) for name in named[0]),
        _right(row, choices) if choices else _answers(row),
        choices,
        {"type": _type(row)},
        videos=tuple(folder / name for name in named[1]),
        place=row.place,
    )


def _record(row: Row, key: str, folder: Path, template: str) -> Question:
    """A record as training reads it. Pictures that do not simply come first stay where its words have them."""
    try:
        record = parse_record(row.data)
    except RecordError as error:
        raise UserError(f"{row.place}: {error}") from None
    *earlier, last = record.conversation.turns
    files = record.conversation.pictures
    named = Question(
        key,
        "",
        tuple(_picture(file.name, folder) for file in files if not file.video),
        [last.answer],
        tags={"type": _type(row)},
        videos=tuple(folder / file.name for file in files if file.video),
        place=row.place,
    )
    shown, words = split_leading(last.question)
    first = [part for part in shown if not isinstance(part, str)]
    if not earlier and first == sorted(files, key=lambda file: file.video):
        return replace(named, prompt=template.format(question="".join(words), choices=""))
    asked = Turn(rewritten(last.question, lambda text: template.format(question=text, choices="")))
    texts = (p if isinstance(p, str) else VIDEO_MARKER if p.video else IMAGE_MARKER for p in asked.question)
    return replace(named, prompt="".join(texts), dialogue=Conversation([*earlier, asked]))


def _type(row: Row) -> str:
    key = "type" if row.get("type") else "question_type"
    found = row.id(key) if row.get(key) else _ANY_TYPE
    if found == _OVERALL:
        raise UserError(
            f"{row.place}: the type '{_OVERALL}' is what the score of all types is called. Name it otherwise."
        )
    return found


def _names(row: Row, key: str) -> list[str]:
    value = row.get(key) or []
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{row.place}: '{key}' is {str(value)[:40]!r}, expected a file's name, or a list of them.")
    return names


def _picture(name: str, folder: Path) -> Path | bytes:
    if not name.startswith("data:"):
        return folder / name
    try:
        with urlopen(name) as data:
            return data.read()
    except (ValueError, OSError):
        return b""


def _answers(row: Row) -> list[str]:
    return row.texts("answers") if row.get("answers") is not None else [row.text("answer")]


def _right(row: Row, choices: tuple[str, ...]) -> str:
    """The right choice, from its text, its number or its letter."""
    answer: Any = row.get("answer", (row.get("answers") or [None])[0])
    if isinstance(answer, int):
        return choices[row.index("answer", len(choices))]
    if answer in choices:
        return answer
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS[: len(choices)]:
        return choices[LETTERS.index(answer)]
    raise UserError(
        f"{row.place}: the answer {str(answer)[:40]!r} is not one of the choices. Write one's text or number."
    )


def _accepted(question: Question) -> list[str]:
    return [question.reference] if isinstance(question.reference, str) else question.reference


def _exact(text: str, question: Question) -> Judged:
    return Judged(exact_match(text, _accepted(question)))


def _vqa(text: str, question: Question) -> Judged:
    return Judged(official_accuracy(text, _accepted(question)))


def _choice(text: str, question: Question) -> Judged:
    number = chosen(text, question.choices)
    said = None if number is None else question.choices[number]
    return Judged(float(said == question.reference), said is not None, said)


def _any(text: str, question: Question) -> Judged:
    rule = _choice if question.choices else _vqa if len(question.reference) >= _HUMANS else _exact
    return rule(text, question)


def _scorer(rule: Rule) -> Scorer:
    def scorer(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
        samples = judge(questions, predictions, rule)
        groups = by_tag(questions, samples, "type") | {_OVERALL: list(samples.values())}
        means = {name: sum(s.value for s in found) / len(found) for name, found in sorted(groups.items())}
        return Scores(means, _OVERALL, "fraction", samples)

    return scorer
