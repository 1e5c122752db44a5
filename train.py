"""Train: torchrun --nproc-per-node N train.py --cfg-path train_configs/X.yaml [--options run.max_epoch=2 ...]"""

from pathlib import Path

from minigpt4.common.command_line import config_parser, run


def main() -> None:
    args = config_parser("Align a vision tower with an LLM, as a YAML file says.").parse_args()

    from minigpt4.config.loading import load_config
    from minigpt4.config.names import check_names

    config = load_config(args.cfg_path, args.options)  # wrong configs fail before the slow imports below
    check_names(config)

    import torch

    from minigpt4.common.distributed import distributed, pick_device, seed_everything
    from minigpt4.common.errors import Problems
    from minigpt4.common.locks import locked
    from minigpt4.common.registry import registry
    from minigpt4.runners.log import setup_logger

    problems = Problems()  # told together, before anything is loaded
    device = torch.device("cpu")
    with problems.collect():
        device = pick_device(config.run.device)
    with distributed(device):
        setup_logger()
        with locked("run.output_dir", Path(config.run.output_dir)):
            runner_class = registry.get_runner_class(config.run.runner)
            with problems.collect():
                runner_class.check(config)
            task = registry.get_task_class(config.run.task)(config)
            if cached := bool(config.run.cache_features):
                from minigpt4.runners.feature_cache import cached_datasets

                problems.tell()
                datasets = cached_datasets(config, task)
            else:
                datasets = {}
                for split in ("train", *config.run.valid_splits):
                    with problems.collect():
                        datasets[split] = task.build_datasets(split)
            seed_everything(config.run.seed)  # every rank builds the same untrained projection
            model = task.build_model(towers=not cached, problems=problems)
            runner_class(config, task, model, datasets).train()  # the strategy places the model


if __name__ == "__main__":
    run(main)
