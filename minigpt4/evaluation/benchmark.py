"""A benchmark as data: questions, the prompt that asks them, how they are answered, and what scores the answers.

Nothing here asks a model: answers are passed to `Benchmark.score`.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from minigpt4.common.errors import UserError, closest, did_you_mean
from minigpt4.common.registry import registry
from minigpt4.config.schema import EvaluationDatasetConfig
from minigpt4.conversation.conversation import Conversation
from minigpt4.evaluation.source import Source

Prediction = str | int  # an answer's text, or the number of the chosen candidate of a question that has `choices`
Method = Literal["generate", "rank"]
OWN = "own"  # the kind of a block whose name is not a benchmark's


@dataclass(frozen=True)
class Question:
    """One question, ready to be asked.

    Attributes:
        prompt: the text that is sent, behind the pictures and videos. Whatever it says, it shows no picture.
        pictures: files, or the bytes of one.
        reference: what the answer is compared with; JSON can hold it.
        choices: candidates, for a ranking.
        tags: what scores and filters group by, such as {"type": ..., "split": ...}.
        dialogue: what is sent instead of that, where turns come before or pictures stand among the words: the pictures
            and videos in the places of its `File`s, in the same order. `prompt` then is its last question for people.
        aliases: other ids under which predictions may name it.
        place: the file and the record that it comes from, for errors.
    """

    id: str
    prompt: str
    pictures: tuple[Path | bytes, ...] = ()
    reference: Any = None
    choices: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    videos: tuple[Path, ...] = ()
    dialogue: Conversation | None = None
    aliases: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Judged:
    """What a scorer made of one answer.

    Attributes:
        value: 0 to 1; of captions CIDEr, 0 to 10.
        parsed: whether the answer could be understood; one that can't is wrong.
        understood: what it was taken for, such as a letter, yes or no, or a box; None where there is nothing to parse.
    """

    value: float
    parsed: bool = True
    understood: Any = None


@dataclass(frozen=True)
class Scores:
    """What a scorer says about all answers.

    Attributes:
        scores: numbers by name, nested for sub-scores, rounded as the official code rounds them. Whole numbers (`int`)
            are counts, all others are in the scale of the main one.
        main: the name in `scores` of the number that people quote; dots lead into sub-scores.
        scale: of the main number.
        samples: one for each question that counts.
        details: more by name, such as each question's value.
        published: names beside `scores` in the JSON that differ from those within it.
        units: {what is resampled for an interval: its value}, where that is not the samples' values.
        graded: samples have grades without an upper end, as CIDEr's are: neither right nor wrong, and no percentages.
        scorer, benchmark: their names.
    """

    scores: dict[str, Any]
    main: str
    scale: Literal["percent", "fraction", "points"]
    samples: dict[str, Judged]
    details: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    units: dict[str, float] | None = None
    graded: bool = False
    scorer: str = ""
    benchmark: str = ""

    @property
    def values(self) -> dict[str, float]:
        """What a bootstrap draws from: {question, or group of them: value}."""
        return {key: judged.value for key, judged in self.samples.items()} if self.units is None else self.units

    @property
    def mean(self) -> float:
        """The mean of `values`, not rounded: the main number where that is a mean, else the accuracy."""
        return sum(self.values.values()) / len(self.values) if self.values else 0.0

    @property
    def unparsed(self) -> int:
        return sum(not judged.parsed for judged in self.samples.values())

    @property
    def value(self) -> float:
        """The main number."""
        found: Any = self.scores
        for name in self.main.split("."):
            found = found[name]
        return float(found)

    def json(self) -> dict[str, Any]:
        """All of it but for the samples; scores and details stand both below `scores` and at the top."""
        own = {"benchmark": self.benchmark, "scorer": self.scorer, "questions": len(self.samples)}
        own |= {"main": {"name": self.main, "value": self.value, "scale": self.scale}, "mean": self.mean}
        own |= {"graded": True} if self.graded else {}
        inner = self.scores | self.details
        own |= {"unparsed": self.unparsed, "scores": inner}
        return {**inner, **self.published, **own}  # a type of own questions may be called as one of them


Scorer = Callable[[Sequence[Question], Mapping[str, Prediction]], Scores]


@dataclass(frozen=True)
class Benchmark:
    """Questions and what scores their answers. A registered function makes one from a `Source`.

    Attributes:
        scorers: {name: scorer}; "official" is the default, "original" MiniGPT-4's own.
        prompt: the template that the prompts were made from.
        method: "rank": questions that have choices are answered by the likeliest one; others are generated anyway.
        missing: what becomes of a question without a prediction, as the official code has it.
        extra: what becomes of a prediction about no question: GQA's files are parts of one another.
        name: as the config names it; kind: as it is registered.
        scorer: the name of the one that is used if none is named.
        files: those that the questions and references were read from.
        score_only: scorers of what no answer of a model is, such as probabilities.
    """

    questions: Sequence[Question]
    scorers: Mapping[str, Scorer]
    prompt: str = "{question}"
    method: Method = "generate"
    missing: Literal["refuse", "wrong"] = "refuse"
    extra: Literal["refuse", "ignore"] = "refuse"
    name: str = ""
    kind: str = ""
    scorer: str = "official"
    files: tuple[Path, ...] = ()
    score_only: tuple[str, ...] = ()

    def ranked(self, question: Question) -> bool:
        """Whether the question is answered by ranking its choices."""
        return self.method == "rank" and bool(question.choices)

    def check_pictures(self) -> None:
        """Looks whether the files that questions name exist; it opens none.

        Raises:
            UserError: names the first missing one, where it is named, and how many are missing.
        """
        checked: dict[Path | bytes, bool] = {}
        missing = []
        for question in self.questions:
            for file in (*question.pictures, *question.videos):
                if file not in checked:
                    checked[file] = os.path.isfile(file) if isinstance(file, Path) else bool(file)
                    if not checked[file]:
                        missing.append((file, question))
        if missing:
            file, question = missing[0]
            what = f"'{file}' is not a file" if isinstance(file, Path) else "it holds no picture"
            raise UserError(
                f"{question.place}: {what} ({len(missing)} of {len(checked)} pictures of {self.name} are missing). "
                "Set img_path to the folder that holds them."
            )

    def score(self, predictions: Mapping[str, Prediction], scorer: str | None = None) -> Scores:
        """Scores answers.

        Args:
            predictions: {question's id: answer}.
            scorer: a name of `scorers`; None: `self.scorer`.

        Raises:
            UserError: no question, an unknown id or scorer, an answer missing where the official code needs all.
        """
        name = scorer or self.scorer
        if name not in self.scorers:
            raise UserError(f"{self.name}: scorer: '{name}' is unknown.{did_you_mean(name, self.scorers)}")
        if not self.questions or not predictions:
            what = "question" if not self.questions else "prediction"
            raise UserError(f"{self.name}: there is no {what}, so there is no score. Name a file that holds some.")
        known = {question.id for question in self.questions}
        unknown = [key for key in predictions if key not in known]
        if unknown and self.extra == "refuse":
            raise UserError(
                f"{self.name}: '{unknown[0]}' is not a question's id ({len(unknown)} such predictions of "
                f"{len(predictions)}). Score answers to the questions of this file, split and limit."
            )
        missing = [question for question in self.questions if question.id not in predictions]
        if missing and self.missing == "refuse":
            raise UserError(
                f"{self.name}: {len(missing)} of {len(self.questions)} questions have no prediction, such as "
                f"'{missing[0].id}'. Answer all of them, or set a limit."
            )
        if len(missing) == len(self.questions):
            raise UserError(f"{self.name}: no prediction is about one of its questions. Name a file that holds some.")
        return replace(self.scorers[name](self.questions, predictions), scorer=name, benchmark=self.name)


def load_benchmark(
    name: str, block: EvaluationDatasetConfig, keys: str = "evaluation_datasets.{name}.{key}"
) -> Benchmark:
    """Makes the benchmark of a block of `evaluation_datasets`.

    Args:
        name: the block's name; the benchmark's too, unless `block.benchmark` says another.
        keys: how an error names a key.

    Raises:
        UserError: a name is unknown, an annotation missing or unreadable, a template wrong, or there is no question.
    """
    source = Source(name, block, keys)
    known = registry.names("benchmark")
    kind = block.benchmark or (name if name in known else OWN)
    if kind not in known:
        raise UserError(f"{source.key('benchmark')}: '{kind}' is unknown.{did_you_mean(kind, known)}")
    source.kind = kind
    try:
        made: Benchmark = registry.get("benchmark", kind)(source)
    except UserError as error:  # perhaps the name was meant to be another benchmark's
        raise UserError(f"{error}{'' if block.benchmark or name in known else closest(name, known)}") from None
    source.check_split_read()
    questions = list(made.questions)[: block.limit]
    if not questions:
        raise UserError(
            f"{source.key('eval_file_path')}: '{block.eval_file_path}' holds no questions for {kind}. Set it to a file "
            "that does."
        )
    twice, count = Counter(question.id for question in questions).most_common(1)[0]
    if count > 1:
        places = [question.place for question in questions if question.id == twice]
        raise UserError(f"{places[1]}: the id '{twice}' stands there already, in {places[0]}. Give each its own.")
    rankable = any(question.choices for question in questions)
    method: Method = block.method or (made.method if rankable else "generate")
    if method == "rank" and not rankable:
        raise UserError(f"{source.key('method')}: rank, but no question of {kind} has choices. Set it to generate.")
    if block.scorer not in made.scorers:
        hint = did_you_mean(block.scorer, made.scorers)
        raise UserError(f"{source.key('scorer')}: '{block.scorer}' is not a scorer of {kind}.{hint}")
    files = tuple(dict.fromkeys(source.files))
    return replace(made, questions=questions, name=name, kind=kind, method=method, scorer=block.scorer, files=files)
