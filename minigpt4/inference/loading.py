"""From a config to a model that answers."""

from minigpt4.common.distributed import pick_device
from minigpt4.common.errors import Problems
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.inference.engine import Engine
from minigpt4.models.loading import load_prompter


def load_engine(config: Config, problems: Problems | None = None) -> Engine:
    """The engine of a config, its model in eval mode on its device.

    Raises:
        UserError: a file is missing or does not fit; all problems are told at once, those found before too.
    """
    model = registry.get_model_class(config.model.arch).from_config(config, problems=problems)
    model.place(pick_device(config.run.device)).answering()
    processor = config.preprocess.vis_processor.eval.build()
    return Engine(model, load_prompter(config.model), processor, config.model.compile)
