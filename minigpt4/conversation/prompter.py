"""From a conversation to what the LLM reads: text, then token ids with slots for pictures. No LLM, no tensors.

A layout is a list of ids: a token id, or `IMAGE_ROW` where one row of a picture's embedding goes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from minigpt4.common.errors import UserError, prefixed
from minigpt4.conversation.conversation import Conversation, Part, Turn, joined, rewritten, with_pictures
from minigpt4.conversation.templates import Template, TokenizerTemplate, get_template

if TYPE_CHECKING:  # slow to import, or built on this
    from transformers import PreTrainedTokenizerBase

    from minigpt4.config.schema import ModelConfig

IMAGE_PLACEHOLDER = "<ImageHere>"  # a picture in the original's prompts
IMAGE_TAGS = ("<Img>", "</Img>")  # what stands around a picture
_TAGGED_PLACEHOLDER = "(?:{0})?{2}(?:{1})?".format(*IMAGE_TAGS, IMAGE_PLACEHOLDER)
IMAGE_ROW = -1  # no token id is negative
IGNORE = -100  # label that the loss skips
Draw = Callable[[list[str]], str]
Example = list[tuple[int, bool]]  # a training layout: ids, and whether the loss counts them


@dataclass
class Prompter:
    """Lays out conversations for one LLM, to be answered or to be learnt from.

    Attributes:
        rows: embeddings that stand for one picture.
        window: tokens that the LLM reads and answers at once; infinite where it sets no limit.
        prompts: of which one is drawn for a caption; without any the picture alone is the prompt.
        max_txt_len: most tokens that training reads of what follows the first prompt.
        image_tags: written before and after each picture of a conversation.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: Template | TokenizerTemplate
    rows: int
    window: float
    prompts: list[str]
    prompt_template: str
    turn_template: str
    chat_template: bool
    end_sym: str
    max_txt_len: int
    image_tags: tuple[str, str] = IMAGE_TAGS

    @classmethod
    def of(cls, config: "ModelConfig", tokenizer: "PreTrainedTokenizerBase", rows: int, window: float) -> Self:
        """The prompter of a config; `window` is the LLM's own.

        Raises:
            UserError: the template or the prompts that the config names are not there.
        """
        return cls(
            tokenizer,
            get_template(config.conversation, tokenizer),
            rows,
            config.max_context_len or window,
            read_prompts(config.prompt_path, config.prompt_template),
            config.prompt_template,
            # the original begins each later turn of a training conversation with a BOS
            config.turn_template or (tokenizer.bos_token or "") + config.prompt_template,
            config.chat_template,
            config.end_sym,
            config.max_txt_len,
        )

    @property
    def max_pictures(self) -> float:
        """How many pictures fill the window."""
        return self.window / self.rows

    def read(self, conversation: Conversation) -> list[Part]:
        """What the LLM reads of a conversation that it is to answer: text and the pictures, in order.

        A system text for which the template has no place stands before the first question.

        Raises:
            UserError: the template refuses the dialogue.
        """
        shown = replace(
            conversation, turns=[replace(turn, question=self._tagged(turn.question)) for turn in conversation.turns]
        )
        try:
            parts = self.template.render(shown)
        except UserError:
            if conversation.system is None:
                raise
            # the tiny model answers as well with it there, and worse behind the picture
            first, *rest = shown.turns
            question = joined(first.question)
            before = [conversation.system, "\n"] if conversation.system and question else [conversation.system]
            first = replace(first, question=[*before, *question])
            parts = self.template.render(replace(shown, system=None, turns=[first, *rest]))
        return joined(parts)

    def parse(self, text: str, pictures: Sequence[Part]) -> list[Part]:
        """The same of a prompt as the original writes it: `<ImageHere>` stands for the next of the pictures.

        Raises:
            UserError: it does not hold one for each picture.
        """
        try:
            return joined(with_pictures(text, IMAGE_PLACEHOLDER, pictures))
        except ValueError:
            raise UserError(_mismatch("the prompt holds", text.count(IMAGE_PLACEHOLDER), len(pictures))) from None

    def parse_all(self, texts: Sequence[str], pictures: Any) -> list[list[Part]]:
        """Parses prompts.

        Args:
            pictures: of all prompts in order of appearance; or for each prompt its own, None for none.

        Raises:
            UserError: a prompt does not hold one `<ImageHere>` for each of its pictures.
        """
        places = [text.count(IMAGE_PLACEHOLDER) for text in texts]
        if pictures is None or not isinstance(pictures, list):
            if (given := 0 if pictures is None else len(pictures)) != sum(places):
                raise UserError(_mismatch("prompts hold", sum(places), given))
            left = iter(() if pictures is None else pictures)
            pictures = [list(islice(left, count)) for count in places]
        if len(pictures) != len(texts):
            raise UserError(f"images were given for {len(pictures)} prompts, and there are {len(texts)}.")
        parsed = []
        for number, (text, own) in enumerate(zip(texts, pictures, strict=True), start=1):
            with prefixed(f"prompt {number} of {len(texts)}: " if len(texts) > 1 else ""):
                parsed.append(self.parse(text, [] if own is None else list(own)))
        return parsed

    def text(self, parts: Sequence[Part]) -> str:
        """What `read` or `parse` gave as one text, with `<ImageHere>` for each picture."""
        return "".join(part if isinstance(part, str) else IMAGE_PLACEHOLDER for part in parts)

    def layout(self, parts: Sequence[Part]) -> list[int]:
        """Token ids and image rows of what `read` or `parse` gave, after the BOS of an LLM that has one."""
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + self._laid_out(parts)

    def length(self, parts: Sequence[Part], most: float) -> int:
        """How many ids `layout` gives; of more than `most`, any number between.

        No token holds more than the longest piece of the vocabulary: a book is too long, and need not be encoded.
        """
        least = sum(len(part) if isinstance(part, str) else self.rows * self._longest for part in parts)
        return least if (least := least // self._longest) > most else len(self.layout(parts))

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS or EOS.

        Raises:
            UserError: the text holds half a character, which no tokenizer takes.
        """
        try:
            text.encode()
        except UnicodeEncodeError:  # tokenizers fail on it in words of their own
            raise UserError("a character of the text is only half there (a lone surrogate). Remove it.") from None
        # not verbose: it would warn of a text longer than the window, and lengths are looked at elsewhere
        return self.tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def example(self, conversation: Conversation, draw: Draw = itemgetter(0)) -> Example:
        """What training reads of a conversation, the BOS included, and which ids its loss counts: the answers'.

        Args:
            draw: chooses one of the model's own prompts for a caption.

        Raises:
            UserError: it is too long for the LLM, or max_txt_len cuts a picture off.
        """
        first, rest = self.turns(conversation, draw)
        example = first + rest[: self.max_txt_len]
        if len(example) > self.window:
            raise UserError(f"it has {len(example)} tokens, and the LLM reads {self.window} at once. Shorten it.")
        if (shown := sum(i == IMAGE_ROW for i, _ in example)) != len(conversation.pictures) * self.rows:
            raise UserError(
                f"its prompts show {shown / self.rows:g} pictures within model.max_txt_len={self.max_txt_len}, and it "
                f"has {len(conversation.pictures)}. Show fewer, or set model.max_txt_len higher."
            )
        return example

    def turns(self, conversation: Conversation, draw: Draw = itemgetter(0)) -> tuple[Example, Example]:
        """The first question, with the BOS, and all that follows it, of whatever length."""
        first, *others = conversation.turns
        prompt, rest = self.pair(self._first_prompt(first, conversation.kind, draw), first.answer or "")
        for turn in others:
            rest += self.prompt(rewritten(self._tagged(turn.question), self.turn_template.format))
            rest += self.answer(turn.answer or "")
        return prompt, rest

    def pair(self, prompt: Sequence[Part], answer: str) -> tuple[Example, Example]:
        """A prompt that is read as it is, with the BOS, and its answer."""
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [(bos, False)]) + self.prompt(prompt), self.answer(answer)

    def prompt(self, parts: Sequence[Part]) -> Example:
        """Lays out a prompt; the loss counts nothing of it but the template's own markers, where it says so."""
        learned = self.template.learned
        pattern = "(" + "|".join(map(re.escape, learned)) + ")"
        pieces = [
            piece
            for part in joined(parts)
            for piece in (re.split(pattern, part) if learned and isinstance(part, str) else [part])
        ]
        return [(i, isinstance(piece, str) and piece in learned) for piece in pieces for i in self._laid_out([piece])]

    def answer(self, text: str) -> Example:
        """Lays out an answer with the symbol that ends it; the loss counts all of it."""
        return [(i, True) for i in self.encode(text + self.end_sym)]

    def check_prompts(self) -> None:
        """Looks at what all samples share.

        Raises:
            UserError: it leaves no room for an answer.
        """
        templates = {"prompt_path": self.prompts, "prompt_template": [self.prompt_template.format("")]}
        for key, texts in templates.items():
            for text in texts:
                tokens = len(self.layout(self.parse(text, [None] * text.count(IMAGE_PLACEHOLDER))))
                if tokens >= self.window:
                    raise UserError(
                        f"model.{key}: '{text[:60]}...' has {tokens} tokens, and the LLM reads {self.window} at once. "
                        "Shorten it."
                    )

    def _first_prompt(self, turn: Turn, kind: str, draw: Draw) -> list[Part]:
        if kind == "caption":
            return self.parse(draw(self.prompts) if self.prompts else IMAGE_PLACEHOLDER, turn.pictures)
        question = self._tagged(turn.question)
        as_it_is = kind == "instruction" and not self.chat_template
        return question if as_it_is else rewritten(question, self.prompt_template.format)

    def _tagged(self, question: Sequence[Part]) -> list[Part]:
        before, after = self.image_tags
        return [p for part in question for p in ([part] if isinstance(part, str) else [before, part, after])]

    def _laid_out(self, parts: Sequence[Part]) -> list[int]:
        """Each text between pictures is encoded by itself; an empty one gives nothing."""
        layout: list[int] = []
        for part in parts:
            if not isinstance(part, str):
                layout += [IMAGE_ROW] * self.rows
            elif part:
                layout += self.encode(part)
        return layout

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()))


def split_at_placeholders(text: str) -> list[str]:
    """The texts around each `<ImageHere>`, which files write with tags or without."""
    return re.split(_TAGGED_PLACEHOLDER, text)


def _mismatch(who: str, places: int, given: int) -> str:
    return (
        f"{who} {places} {IMAGE_PLACEHOLDER} but {given} images were given. Write one {IMAGE_PLACEHOLDER} for each "
        "image."
    )


def read_prompts(path: str, template: str) -> list[str]:
    """Reads training prompts: the lines that hold `<ImageHere>`, each put into the template.

    Raises:
        UserError: the file is missing or no line holds `<ImageHere>`.
    """
    if not path:
        return []
    if not Path(path).is_file():
        raise UserError(f"model.prompt_path: '{path}' does not exist. Set it to a text file with one prompt a line.")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    prompts = [template.format(line) for line in lines if IMAGE_PLACEHOLDER in line]
    if not prompts:
        raise UserError(
            f"model.prompt_path: no line of '{path}' holds {IMAGE_PLACEHOLDER}. Write it where the picture goes."
        )
    return prompts
