"""What a config names, loaded: the prompter of its LLM, and a model that answers."""

from transformers import AutoConfig

from minigpt4.common.distributed import pick_device
from minigpt4.common.errors import Problems
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.engine import Engine
from minigpt4.models.llm import llm_folder, load_tokenizer, window_of
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.vision import vision_class


def load_engine(config: Config, problems: Problems | None = None) -> Engine:
    """The engine of a config, its model in eval mode on its device.

    Raises:
        UserError: a file is missing or does not fit; all problems are reported at once, those found before too.
    """
    model = registry.get_model_class(config.model.arch).from_config(config, problems=problems)
    model.place(pick_device(config.run.device)).prepare_for_inference()
    return engine_for(model, config)


def engine_for(model: MiniGPT4, config: Config) -> Engine:
    """The engine of a config around a model that is loaded, such as the one in training; in eval mode, on its device.

    Raises:
        UserError: as `load_prompter`.
    """
    processor = config.preprocess.vis_processor.eval.build()
    return Engine(model, load_prompter(config.model), processor, config.model.compile)


def load_prompter(config: ModelConfig) -> Prompter:
    """The prompter of a config's LLM, of which only the settings and the tokenizer are read.

    Raises:
        UserError: there is no such folder, no tokenizer in it, or no template or prompts of that name.
    """
    folder = llm_folder(config.llama_model)
    tokenizer = load_tokenizer(folder, config.trust_remote_code)
    trusted = config.trust_remote_code
    window = window_of(AutoConfig.from_pretrained(folder, trust_remote_code=trusted, local_files_only=True))
    rows, _ = vision_class(config).shape(Config(model=config))
    return Prompter.of(config, tokenizer, rows, window)
