"""`minigpt4 predict`: answers a question about each of many images, or a file of questions, as JSON lines."""

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.common.command_line import require_open
from minigpt4.common.errors import UserError, first_line
from minigpt4.config.arguments import add_model_arguments, read_config
from minigpt4.config.finding import TINY
from minigpt4.config.schema import PreprocessConfig
from minigpt4.conversation.conversation import Conversation
from minigpt4.inference.boxes import in_pixels
from minigpt4.inference.options import AnswerOptions, add_option_arguments, options_of
from minigpt4.serve.quiet_loading import quietly

if TYPE_CHECKING:  # slow to import
    from minigpt4.inference.requests import Answer, Answerer
    from minigpt4.serve.questions import Question

# a question's conversation, or why there is none; and the size of its last picture, which boxes are about
Prepared = tuple[Conversation | str, tuple[int, int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_model_arguments(parser, TINY)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", nargs="+", action="extend", metavar="PATH", help="pictures, or folders of them")
    what.add_argument("--input", metavar="FILE", help='JSON lines of {"image" | "images" | "video", "text", "id"}')
    parser.add_argument("--text", help="the question; with --input, of records that have none")
    parser.add_argument(
        "--image-folder", metavar="DIR", help="where file names of --input begin (default: as in training)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON lines; a run that was ended continues there")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions at once (default: 8)")
    parser.add_argument("--timing", action="store_true", help="say at the end how long it took")
    add_option_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Answers what is not answered yet, and exits with 1 where some questions failed."""
    timing = Timing()
    config, options = read_config(args), options_of(args)
    _check(args, options)
    from tqdm import tqdm

    from minigpt4.inference.results import Results
    from minigpt4.serve.questions import questions_about, read_questions

    if args.input:
        questions = read_questions(args.input, args.text, args.image_folder)
    else:
        questions = questions_about(args.image, args.text)
    size = 1 if options.do_sample and options.num_beams > 1 else args.batch_size  # they share a batch's generator
    no_bar = not args.output and sys.stdout.isatty()  # it would run into the answers
    failed = 0
    with Results(args.output, questions) as results:
        if kept := len(questions) - len(results.open):
            about = "they stay, whatever this run's model and options"
            sys.stderr.write(f"{kept} of {len(questions)} questions have answers in '{args.output}'; {about}\n")
        if results.open:
            with quietly():
                from minigpt4.inference.loading import load_engine  # slow to import

                engine = load_engine(config)
            timing.note("load")
        # disable=None: only where stderr is a terminal
        with tqdm(total=len(questions), initial=kept, disable=no_bar or None) as bar:
            for start in range(0, len(results.open), size):
                asked, n_frms = results.open[start : start + size], config.preprocess.n_frms
                prepared = [prepare(engine, question, n_frms) for question in asked]
                timing.note(
                    "read", images=sum(len(own.pictures) for own, _ in prepared if isinstance(own, Conversation))
                )
                answered = zip(asked, answer(engine, prepared, options), strict=True)
                answers = [question.echo() | result for question, result in answered]
                tokens = [result["new_tokens"] for result in answers if "answer" in result]
                timing.note("answer", answers=len(tokens), tokens=sum(tokens))
                results.write(answers)
                bar.update(len(answers))
                failed += sum("error" in result for result in answers)
        results.finish()
    if args.output and results.open:
        sys.stderr.write(f"{len(questions) - failed} of {len(questions)} answers are in '{args.output}'\n")
    if args.timing:
        sys.stderr.write(f"{timing}\n")
    if failed:
        sys.stderr.write(f'{failed} of {len(questions)} questions failed; the lines with "error" say why\n')
        sys.exit(1)


def _check(args: argparse.Namespace, options: AnswerOptions) -> None:
    if args.batch_size < 1:
        raise UserError(f"--batch-size: {args.batch_size} is out of range. Set it to 1 or more.")
    if args.image and not args.text:
        raise UserError('--text: is missing. Set it, for example to "Describe this image in detail."')
    if args.image and args.image_folder:
        raise UserError("--image-folder: has no effect on --image. Leave it out.")
    if not args.output:
        require_open("stdout")
    with suppress(OSError):  # one of them is not there, or not yet
        if args.input and args.output and os.path.samefile(args.input, args.output):
            raise UserError(f"--output: '{args.output}' is the file of --input. Name another file.")
    if idle := options.without_effect():
        names = ", ".join(f"--{key.replace('_', '-')}" for key in idle)
        raise UserError(f"{names}: without effect. Set --do-sample too.")


def prepare(engine: "Answerer", question: "Question", n_frms: int = PreprocessConfig.n_frms) -> Prepared:
    """Opens a question's files; of a video, `n_frms` pictures. Where that fails, says what is wrong."""
    from minigpt4.processors.picture_file import PixelBudget

    try:
        turns = question.turns(PixelBudget(most=engine.prompter.max_pictures), n_frms)
        sizes = [picture.image.size for turn in turns for picture in turn.pictures]
        for turn in turns:
            turn.question = [part if isinstance(part, str) else engine.processor(part.image) for part in turn.question]
        return Conversation(turns), sizes[-1] if sizes else (0, 0)
    except Exception as error:  # readers of files raise many kinds
        return _in_words(error), (0, 0)


def answer(engine: "Answerer", prepared: list[Prepared], options: AnswerOptions) -> Iterator[dict[str, Any]]:
    """Answers a batch, each question as if it were alone. One that fails has an `error` in place of its `answer`."""
    answers = iter(engine.answer([options.request(own) for own, _ in prepared if isinstance(own, Conversation)]))
    for own, size in prepared:
        yield _result(next(answers), size) if isinstance(own, Conversation) else {"error": own}


def _result(answer: "Answer", size: tuple[int, int]) -> dict[str, Any]:
    if answer.error:
        return {"error": _in_words(answer.error)}
    boxes = in_pixels(answer, size) if any(size) else []
    result: dict[str, Any] = {"answer": str(answer), "finish": answer.finish, "new_tokens": answer.new_tokens}
    return result | ({"boxes": boxes} if boxes else {})


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


class Timing:
    """How long the steps of a run took, in seconds of wall-clock time, and how much they got through."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def note(self, step: str, **amounts: int) -> None:
        """A part of a step has ended: "load", "read" with so many `images`, "answer" with `answers` and `tokens`."""
        last, self._last = self._last, time.perf_counter()
        for name, amount in {step: self._last - last, **amounts}.items():
            self._sums[name] += amount

    def __str__(self) -> str:
        load, read, answers = (self._sums[name] for name in ("load", "read", "answers"))
        seconds = read + self._sums["answer"]
        if not answers:
            return f"loading {load:.2f} s; no answers in {seconds:.2f} s"
        return (
            f"loading {load:.2f} s; {answers:.0f} answers in {seconds:.2f} s, {read:.2f} s of them to read pictures: "
            f"{seconds / answers:.3f} s per answer, {self._sums['images'] / seconds:.2f} images/s, "
            f"{self._sums['tokens'] / seconds:.1f} tokens/s"
        )
