"""Names of registered classes, checked before anything is loaded. Not in `load_config`: it imports the classes."""

from minigpt4.common.errors import Problems, prefixed
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, ModelConfig, ProcessorConfig


def check_names(config: Config) -> None:
    """Refuses names that nothing is registered under, and keys that the named processor does not take.

    Raises:
        UserError: with one line for each problem.
    """
    processors = _processors(config)
    names = {
        "run.lr_sched": ("lr_scheduler", config.run.lr_sched),
        "run.task": ("task", config.run.task),
        "run.runner": ("runner", config.run.runner),
        "model.arch": ("model", config.model.arch),
        "model.vision.name": ("vision", config.model.vision_kind),
        "model.projection.name": ("projection", config.model.projection.name),
        **{
            f"datasets.{name}" + ".format" * bool(block.format): ("format", block.format)
            if block.format
            else ("builder", name)
            for name, block in config.datasets.items()
        },
        **{
            f"evaluation_datasets.{name}.benchmark": ("benchmark", block.benchmark)
            for name, block in config.evaluation_datasets.items()
            if block.benchmark is not None
        },
        **{f"{place}.name": ("processor", processor.name) for place, processor in processors.items()},
    }
    problems = Problems()
    for key, (kind, name) in names.items():
        with problems.collect(), prefixed(f"{key}: "):
            registry.get(kind, name)
    if not problems:
        problems += _unread(config.model)
    for place, processor in processors.items() if not problems else ():
        with problems.collect(), prefixed(f"{place}: "):
            processor.build()
    problems.raise_all()


def _unread(model: ModelConfig) -> list[str]:
    """Keys that the named vision part does not read."""
    kind = registry.get_vision_class(model.vision_kind)
    given = [key for key, value in vars(model.vision).items() if value is not None and key != "name"]
    return [
        f"model.vision.{key}: {model.vision_kind} does not read it. Remove that key."
        for key in given
        if key not in kind.settings
    ]


def _processors(config: Config) -> dict[str, ProcessorConfig]:
    """{key: processor} of the defaults, and of the datasets where they name others."""
    found: dict[str, ProcessorConfig] = {}
    for kind in ("vis_processor", "text_processor"):
        for split, default in vars(getattr(config.preprocess, kind)).items():
            found[f"preprocess.{kind}.{split}"] = default
            for name, dataset in config.datasets.items():
                own = getattr(getattr(dataset, kind), split)
                if own != default:
                    found[f"datasets.{name}.{kind}.{split}"] = own
    return found
