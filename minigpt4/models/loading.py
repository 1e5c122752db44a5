"""What a config names, loaded."""

from transformers import AutoConfig

from minigpt4.config.schema import Config, ModelConfig
from minigpt4.conversation.prompter import Prompter
from minigpt4.models.llm import llm_folder, load_tokenizer, window_of
from minigpt4.models.vision import vision_class


def load_prompter(config: ModelConfig) -> Prompter:
    """The prompter of a config's LLM, of which only the settings and the tokenizer are read.

    Raises:
        UserError: there is no such folder, no tokenizer in it, or no template or prompts of that name.
    """
    folder = llm_folder(config.llama_model)
    tokenizer = load_tokenizer(folder, config.trust_remote_code)
    window = window_of(
        AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code, local_files_only=True)
    )
    rows, _ = vision_class(config).shape(Config(model=config))
    return Prompter.of(config, tokenizer, rows, window)
