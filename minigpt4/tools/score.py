"""`minigpt4 score`: scores answers to a benchmark that were made anywhere."""

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minigpt4.common.command_line import require_open, say
from minigpt4.common.errors import UserError

if TYPE_CHECKING:  # slow to import
    from minigpt4.evaluation.benchmark import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument("benchmark", help="its name, such as okvqa; own is for data of your own")
    parser.add_argument("--eval-file-path", required=True, help="annotation file, or the folder that holds it")
    parser.add_argument("--predictions", required=True, metavar="FILE", help='JSON lines of {"id", "prediction"}')
    parser.add_argument(
        "--scorer", default="official", help="official, or another of the benchmark's, such as original"
    )
    parser.add_argument("--split", help="split of the benchmark (default: the usual one)")
    parser.add_argument("--limit", type=int, metavar="N", help="score only the first N questions")
    parser.add_argument("--img-path", default="", help="folder of the pictures; if given, all must be there")
    parser.add_argument("--json", action="store_true", help="print all scores as JSON")


def main(args: argparse.Namespace) -> None:
    """Prints the scores.

    Raises:
        UserError: a name is unknown, a file missing or malformed, an answer missing or about no question.
    """
    from minigpt4.common.registry import registry
    from minigpt4.config.schema import EvaluationDatasetConfig
    from minigpt4.evaluation.benchmark import load_benchmark
    from minigpt4.evaluation.predictions import read_predictions

    require_open("stdout")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit: {args.limit} is out of range. Set it to 1 or more.")
    registry.get("benchmark", args.benchmark)
    block = EvaluationDatasetConfig(
        eval_file_path=args.eval_file_path,
        img_path=args.img_path,
        split=args.split,
        scorer=args.scorer,
    )
    benchmark = load_benchmark(args.benchmark, block, "--{key}")
    if args.img_path:
        benchmark.check_pictures()
    predictions = read_predictions(args.predictions, benchmark)
    if args.limit is not None:  # a file may hold answers to the others too
        benchmark = replace(benchmark, questions=benchmark.questions[: args.limit])
        asked = {question.id for question in benchmark.questions}
        predictions = {key: own for key, own in predictions.items() if key in asked}
    scores = benchmark.score(predictions)
    say(json.dumps(scores.json(), indent=2, ensure_ascii=False) + "\n" if args.json else table(scores))


def table(scores: "Scores") -> str:
    """The scores, one a line, and how many answers they are made from."""
    rows = list(_rows(scores.scores))
    width = max(len(name) for name, _ in rows)
    unit = {"percent": " (%)", "fraction": "", "points": " (points)"}[scores.scale]
    lines = [f"{scores.benchmark}, scorer {scores.scorer}: {scores.main}{unit} {_shown(scores.value)}"]
    lines += [f"  {name:{width}}  {_shown(value)}" for name, value in rows]
    lines.append(f"{len(scores.samples)} questions, {scores.unparsed} answers could not be understood (they are wrong)")
    return "\n".join(lines) + "\n"


def _rows(node: dict[str, Any], above: str = "") -> "list[tuple[str, Any]]":
    found = []
    for name, value in node.items():
        found += _rows(value, f"{above}{name}: ") if isinstance(value, dict) else [(f"{above}{name}", value)]
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):  # a score and the number of its questions
        return f"{_shown(value[0])} of {value[1]}"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
