"""`minigpt4 evaluate`, also under torchrun: torchrun --nproc-per-node N evaluate.py [MODEL] [--cfg-path X]"""

import argparse
import os

from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.config.arguments import add_model_arguments, read_config
from minigpt4.config.schema import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_model_arguments(parser, "minigpt4_tiny_benchmark")
    parser.add_argument(
        "--benchmarks", metavar="A,B", help="names in evaluation_datasets, joined by commas (default: all)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N questions of each")
    parser.add_argument("--overwrite", action="store_true", help="answer again, and lose the answers that are there")


def main(args: argparse.Namespace) -> None:
    """Evaluates a model, as a config says.

    Raises:
        UserError: the config, the data, the device or a weight file can't be used; all problems are reported at once.
    """
    if args.model and os.path.isdir(args.model) and not args.cfg_path:  # beside what it is about, unless set otherwise
        args.options = [f"run.output_dir={args.model}/evaluation", *args.options]
    config = read_config(args)  # wrong configs fail before the slow imports below
    names = _chosen(config, args)

    from minigpt4.common.console_log import run_on
    from minigpt4.common.locks import locked
    from minigpt4.evaluation.evaluating import Evaluation
    from minigpt4.inference.loading import load_engine

    with run_on(config.run.device) as problems, locked(*config.run.results):
        evaluation = problems.attempt(Evaluation.of, config, names, args.overwrite)
        engine = load_engine(config, problems)
        assert evaluation  # else its problem was raised
        evaluation.run(engine)


def _chosen(config: Config, args: argparse.Namespace) -> list[str]:
    """The benchmarks that the arguments choose.

    Raises:
        UserError: one is unknown, or the limit is out of range.
    """
    known = config.evaluation_datasets
    names = (
        list(known) if args.benchmarks is None else [n for name in args.benchmarks.split(",") if (n := name.strip())]
    )
    if not names and args.benchmarks is not None:
        raise UserError(f"--benchmarks: '{args.benchmarks}' names none. Name some of {', '.join(known) or 'a config'}.")
    for name in names:
        if name not in known:
            raise UserError(
                f"--benchmarks: '{name}' is not in evaluation_datasets.{did_you_mean(name, known)} To add it: "
                f"--options evaluation_datasets.{name}.eval_file_path=PATH evaluation_datasets.{name}.img_path=FOLDER"
            )
    if args.limit is not None:
        if args.limit < 1:
            raise UserError(f"--limit: {args.limit} is out of range. Set it to 1 or more.")
        for name in names:
            known[name].limit = args.limit
    return names
