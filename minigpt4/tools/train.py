"""`minigpt4 train`, also under torchrun: torchrun --nproc-per-node N train.py --cfg-path X [--options ...]"""

import argparse
from pathlib import Path

from minigpt4.config.arguments import add_config_arguments, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_config_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Trains, as a config says."""
    config = read_config(args)  # wrong configs fail before the slow imports below

    from minigpt4.common.console_log import run_on
    from minigpt4.common.distributed import seed_everything
    from minigpt4.common.locks import locked
    from minigpt4.common.registry import registry
    from minigpt4.inference.loading import load_prompter

    with run_on(config.run.device) as problems, locked("run.output_dir", Path(config.run.output_dir)):
        runner_class = registry.get_runner_class(config.run.runner)
        problems.attempt(runner_class.check, config)
        task = registry.get_task_class(config.run.task)(config)
        if cached := bool(config.run.cache_features):
            from minigpt4.runners.feature_cache import cached_datasets

            problems.raise_all()
            datasets = cached_datasets(config, task)
        else:
            datasets = {}
            for split in ("train", *config.run.valid_splits):
                with problems.collect():
                    datasets[split] = task.build_datasets(split)
        seed_everything(config.run.seed)  # every rank builds the same untrained projection
        model = task.build_model(towers=not cached, problems=problems)
        prompter = load_prompter(config.model)
        runner_class(config, task, model, datasets, prompter).train()  # the strategy places the model
