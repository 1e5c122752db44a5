"""Text processors: caption -> caption."""

import re

from minigpt4.common.registry import registry


@registry.register_processor("blip_caption")
class BlipCaptionProcessor:
    """BLIP's clean-up: lower case, punctuation to spaces, at most `max_words` words, `prompt` in front."""

    def __init__(self, prompt: str = "", max_words: int = 50):
        self.prompt = prompt
        self.max_words = max_words

    def __call__(self, caption: str) -> str:
        caption = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
        caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
        return self.prompt + " ".join(caption.split(" ")[: self.max_words])


@registry.register_processor("base_instruction")
class BaseInstructionProcessor:
    """Keeps an instruction as it is written, but for words beyond `max_words`; `prompt` goes in front."""

    def __init__(self, prompt: str = "", max_words: int = 100):
        self.prompt = prompt
        self.max_words = max_words

    def __call__(self, text: str) -> str:
        words = text.split(" ")
        return self.prompt + " ".join(words[: self.max_words])
