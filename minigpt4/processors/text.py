"""Text processors: caption -> caption."""

import re

from minigpt4.common.registry import registry


@registry.register_processor("base_instruction")
class BaseInstructionProcessor:
    """Keeps an instruction as it is written, but for words beyond `max_words`; `prompt` goes in front."""

    def __init__(self, prompt: str = "", max_words: int = 100):
        self.prompt, self.max_words = prompt, max_words

    def __call__(self, text: str) -> str:
        return self.prompt + " ".join(text.split(" ")[: self.max_words])


@registry.register_processor("blip_caption")
class BlipCaptionProcessor(BaseInstructionProcessor):
    """BLIP's clean-up: lower case, punctuation to spaces, at most `max_words` words, `prompt` in front."""

    def __init__(self, prompt: str = "", max_words: int = 50):
        super().__init__(prompt, max_words)

    def __call__(self, caption: str) -> str:
        caption = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
        return super().__call__(re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" "))
