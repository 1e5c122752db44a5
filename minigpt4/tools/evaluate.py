"""`minigpt4 evaluate`, also under torchrun: torchrun --nproc-per-node N evaluate.py [MODEL] [--cfg-path X]"""

import argparse

from minigpt4.config.arguments import add_model_arguments, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_model_arguments(parser, "minigpt4_tiny_benchmark")


def main(args: argparse.Namespace) -> None:
    """Evaluates a model, as a config says.

    Raises:
        UserError: the config, the data, the device or a weight file can't be used; all problems are told at once.
    """
    config = read_config(args)  # wrong configs fail before the slow imports below

    from minigpt4.common.locks import locked
    from minigpt4.common.registry import registry
    from minigpt4.runners.log import run_on

    with run_on(config.run.device) as (device, problems), locked(*config.run.results):
        task = registry.get_task_class(config.run.task)(config)
        datasets = None
        with problems.collect():
            datasets = task.build_eval_datasets()
        task.evaluate(task.build_model(problems=problems).place(device).answering(), datasets)
