"""Evaluate: python evaluate.py --cfg-path eval_configs/minigpt4_tiny_benchmark.yaml [--options model.ckpt=X]"""

from minigpt4.common.command_line import config_parser, run


def main() -> None:
    parser = config_parser(
        "Evaluate a model, as a YAML file says.", default="eval_configs/minigpt4_tiny_benchmark.yaml"
    )
    args = parser.parse_args()

    from minigpt4.config.loading import load_config
    from minigpt4.config.names import check_names

    config = load_config(args.cfg_path, args.options)  # wrong configs fail before the slow imports below
    check_names(config)

    import torch

    from minigpt4.common.distributed import distributed, pick_device
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
        with locked(*config.run.results):
            task = registry.get_task_class(config.run.task)(config)
            datasets = None
            with problems.collect():
                datasets = task.build_eval_datasets()
            task.evaluate(task.build_model(problems=problems).place(device).answering(), datasets)


if __name__ == "__main__":
    run(main)
