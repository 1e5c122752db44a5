"""From the texts of a training sample to what the LLM reads of it, without the LLM: data workers can do this too.

A layout is a list of ids: a token id, or `IMAGE_ROW` where one row of an image embedding goes.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import get_template

if TYPE_CHECKING:  # slow to import, or built on this
    from transformers import PreTrainedTokenizerBase

    from minigpt4.config.schema import ModelConfig

IMAGE_PLACEHOLDER = "<ImageHere>"
IMAGE_ROW = -1  # no token id is negative
Example = list[tuple[int, bool]]  # a training layout: ids, and whether the loss counts them


def without_places(text: str) -> str:
    """Somebody's words, in which only a picture may make a place for one."""
    return text.replace(IMAGE_PLACEHOLDER, " ")  # not "": what stood around it could make another


def prompt_layout(prompt: str, encode: Callable[[str], list[int]], rows_per_image: int) -> list[int]:
    """Lays out one prompt: text around each `<ImageHere>` is encoded by itself, an empty text gives nothing."""
    layout: list[int] = []
    for index, text in enumerate(prompt.split(IMAGE_PLACEHOLDER)):
        if index:
            layout += [IMAGE_ROW] * rows_per_image
        if text:
            layout += encode(text)
    return layout


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids without BOS or EOS.

    Raises:
        UserError: the text holds half a character, which no tokenizer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # tokenizers fail on it in words of their own
        raise UserError("a character of the text is only half there (a lone surrogate). Remove it.") from None
    # not verbose: it would warn of a text longer than the window, and lengths are looked at elsewhere
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


@dataclass
class Prompter:
    """Lays out the texts of training samples.

    Attributes:
        learned: the template's markers that the loss counts outside of answers too.
        rows: embeddings that stand for one picture.
        prompts: of which one is drawn for a sample without an instruction of its own; without any the picture alone
            is the prompt.
        window: tokens that the LLM reads at once.
    """

    tokenizer: "PreTrainedTokenizerBase"
    learned: tuple[str, ...]
    rows: int
    prompts: list[str]
    prompt_template: str
    turn_template: str
    chat_template: bool
    end_sym: str
    max_txt_len: int
    window: float

    @classmethod
    def of(
        cls, config: "ModelConfig", tokenizer: "PreTrainedTokenizerBase", prompts: list[str], rows: int, window: float
    ) -> Self:
        """What a model with this config and tokenizer uses; `window` is the LLM's own."""
        return cls(
            tokenizer,
            get_template(config.conversation, tokenizer).learned,
            rows,
            prompts,
            config.prompt_template,
            # the original begins each later turn of a training conversation with a BOS
            config.turn_template or (tokenizer.bos_token or "") + config.prompt_template,
            config.chat_template,
            config.end_sym,
            config.max_txt_len,
            config.max_context_len or window,
        )

    def prompt(self, text: str) -> Example:
        """A prompt's layout; the loss counts nothing of it but the template's own markers, where it says so."""
        pieces = re.split("(" + "|".join(map(re.escape, self.learned)) + ")", text) if self.learned else [text]
        layouts = [(prompt_layout(piece, self.encode, self.rows), piece in self.learned) for piece in pieces]
        return [(i, learned) for layout, learned in layouts for i in layout]

    def answer(self, text: str) -> Example:
        return [(i, True) for i in self.encode(text + self.end_sym)]

    def single(self, prompt: str, answer: str) -> Example:
        """A prompt and its answer, which max_txt_len limits."""
        return self.prompt(prompt) + self.answer(answer)[: self.max_txt_len]

    def conversation(self, questions: list[str], answers: list[str]) -> Example:
        """The first question is the prompt; max_txt_len limits all that follows it together."""
        first, rest = self.turns(questions, answers)
        return first + rest[: self.max_txt_len]

    def turns(self, questions: list[str], answers: list[str]) -> tuple[Example, Example]:
        """The first question, and all that follows it, of whatever length."""
        rest = self.answer(answers[0])
        for question, answer in zip(questions[1:], answers[1:], strict=True):
            rest += self.prompt(self.turn_template.format(question)) + self.answer(answer)
        return self.prompt(self.prompt_template.format(questions[0])), rest

    def instruction(self, text: str) -> str:
        """The prompt of a sample's own instruction."""
        return self.prompt_template.format(text) if self.chat_template else text

    def encode(self, text: str) -> list[int]:
        return encode_text(self.tokenizer, text)

    def length(self, layout: Example) -> int:
        """Tokens that the LLM reads of a layout, the BOS included."""
        return len(layout) + (self.tokenizer.bos_token_id is not None)

    def too_long(self, tokens: int) -> str:
        """What is wrong with a sample of so many tokens; nothing where the LLM can read it."""
        return f"it has {tokens} tokens, and the LLM reads {self.window} at once" if tokens > self.window else ""

    def check_prompts(self) -> None:
        """Looks at what all samples share.

        Raises:
            UserError: it leaves no room for an answer.
        """
        templates = {"prompt_path": self.prompts, "prompt_template": [self.prompt_template.format("")]}
        for key, texts in templates.items():
            for text in texts:
                if (tokens := self.length(self.prompt(text))) >= self.window:
                    raise UserError(
                        f"model.{key}: '{text[:60]}...' has {tokens} tokens, and the LLM reads {self.window} at once. "
                        "Shorten it."
                    )

    def check(self, sample: Mapping[str, Any]) -> None:
        """Looks at one sample of a dataset, as `TrainingModel.forward` describes them.

        Raises:
            UserError: the model could not learn from it.
        """
        pictures = _pictures(sample)
        for example in self._examples(sample):
            if problem := self.too_long(self.length(example)):
                raise UserError(problem)
            if (shown := sum(i == IMAGE_ROW for i, _ in example)) != pictures * self.rows:
                raise UserError(
                    f"its prompts show {shown / self.rows:g} pictures within model.max_txt_len={self.max_txt_len}, and "
                    f"it has {pictures}. Write one {IMAGE_PLACEHOLDER} for each"
                )

    def _examples(self, sample: Mapping[str, Any]) -> Iterator[Example]:
        """The sample's layout; with each of the prompts where one is drawn for it."""
        if "conv_q" in sample:
            between = sample["connect_sym"]
            questions, answers = (_text(sample, key).split(between) for key in ("conv_q", "conv_a"))
            if len(questions) != len(answers):
                raise UserError(f"it has {len(questions)} questions and {len(answers)} answers")
            for answer in answers:
                _check_answer(answer)
            yield self.conversation(questions, answers)
            return
        _check_answer(answer := _text(sample, "answer"))
        if sample.get("instruction_input"):
            yield self.single(self.instruction(_text(sample, "instruction_input")), answer)
            return
        learned = self.answer(answer)[: self.max_txt_len]
        for prompt in self._drawn:
            yield prompt + learned

    @cached_property
    def _drawn(self) -> list[Example]:
        """The prompts that may be drawn, of those that look alike to `check` but one."""
        layouts = [self.prompt(prompt) for prompt in self.prompts or [IMAGE_PLACEHOLDER]]
        longest = {sum(i == IMAGE_ROW for i, _ in layout): layout for layout in sorted(layouts, key=len)}
        return list(longest.values())


def _text(sample: Mapping[str, Any], key: str) -> str:
    if not isinstance(text := sample.get(key), str):
        raise UserError(f"'{key}' is not text: {text!r:.60}")
    return text


def _check_answer(text: str) -> None:
    if not text.strip():
        raise UserError("its answer is empty")
    if IMAGE_PLACEHOLDER in text:
        raise UserError(f"its answer holds {IMAGE_PLACEHOLDER}; only prompts show pictures")


def _pictures(sample: Mapping[str, Any]) -> int:
    """How many pictures a sample has: [3, H, W] is one, [n, 3, H, W] are n; of cached features [rows, width] is one."""
    features = sample.get("image_features")
    image, dims = (sample.get("image"), 3) if features is None else (features, 2)
    if image is None:
        return 0
    return 1 if image.dim() == dims else int(sample.get("length", len(image)))
