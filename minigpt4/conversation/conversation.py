"""Conversation templates: how a dialogue becomes the one string that the LLM reads. A template is data."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from minigpt4.common.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedTokenizerBase

    from minigpt4.inference.pictures import Picture

IMAGE = "<Img><ImageHere></Img>"

_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass
class Turn:
    """One question and, once given, its answer. `question` holds `<Img><ImageHere></Img>` for each of its pictures."""

    question: str
    answer: str | None = None
    pictures: "list[Picture]" = field(default_factory=list, compare=False)  # of a chat


@dataclass(frozen=True)
class Template:
    """The strings around a dialogue: system, then for each turn user + question + assistant + answer + end.

    A turn without an answer that is not the last (an image shown before the question) is user + question + end.
    """

    system: str
    user: str
    assistant: str
    end: str
    stop: tuple[str, ...]  # generation ends where one of these appears
    learned: tuple[str, ...] = ()  # markers that training's loss counts outside answers too
    before_answer: str = ""  # between assistant and an answer that is known
    own_system: str = ""  # how somebody's own system text is written instead; empty where there is no place for one

    def with_system(self, text: str) -> "Template":
        """This template with another system text.

        Raises:
            UserError: it has no place for one.
        """
        if not self.own_system:
            raise UserError(
                "this model's prompt has no place for a system message. Leave it out, or say it in the first question."
            )
        return replace(self, system=self.own_system.format(text))

    def prompt(self, turns: list[Turn], continued: bool = False) -> str:
        """Renders a dialogue; it ends where the answer of the last, unanswered turn begins.

        Args:
            continued: the last turn's answer, if it has one, is the beginning of one, and the prompt ends with it.
        """
        if continued and (begun := turns[-1].answer) is not None:
            text = self.prompt([*turns[:-1], replace(turns[-1], answer=None)])
            return text + " " * (not text[-1].isspace()) + begun
        text = self.system
        for turn in turns:
            text += self.user + turn.question
            if turn is turns[-1] or turn.answer is not None:
                text += self.assistant
            if turn is not turns[-1] or turn.answer is not None:
                text += self.end if turn.answer is None else self.before_answer + turn.answer + self.end
        return text


@dataclass(frozen=True)
class TokenizerTemplate:
    """The chat template that a tokenizer brings along, for any other LLM."""

    tokenizer: "PreTrainedTokenizerBase"
    stop: tuple[str, ...] = ()  # the end-of-sequence ids do it
    learned: tuple[str, ...] = ()
    system: str = ""  # of whoever asks; without one the tokenizer's template decides

    def with_system(self, text: str) -> "TokenizerTemplate":
        """This template with another system text; whether it has a place for one shows in `prompt`."""
        return replace(self, system=text)

    def prompt(self, turns: list[Turn], continued: bool = False) -> str:
        """Renders a dialogue, without the BOS that generation puts in front; see `Template.prompt`.

        Turns without an answer join the next message: many templates demand that user and assistant alternate.

        Raises:
            UserError: the template refuses the dialogue, or drops the system text.
        """
        messages = [{"role": "system", "content": self.system}] if self.system else []
        asked = list[str]()
        for turn in turns:
            asked.append(turn.question)
            if turn.answer is not None or turn is turns[-1]:
                messages.append({"role": "user", "content": "\n".join(asked)})
                asked = []
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        begun = continued and turns[-1].answer is not None
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
            )
            if self.system.strip() not in text:
                raise TemplateError("it drops the system message")
        except (TemplateError, ValueError) as error:  # ValueError: it has no way to leave an answer open
            raise UserError(
                f"model.conversation: the template of this LLM's tokenizer refuses the dialogue ({first_line(error)}). "
                f"Known: {', '.join(TEMPLATES)}."
            ) from error
        return str(text).removeprefix(self.tokenizer.bos_token or "")


TEMPLATES = {
    "vicuna_v0": Template(_SYSTEM + "###", "Human: ", "###Assistant: ", "###", ("###",), own_system="{}###"),
    # the first version, of May 2023: no space where the answer is to begin
    "vicuna_v0_2023_05": Template(
        _SYSTEM + "###", "Human: ", "###Assistant:", "###", ("###",), before_answer=" ", own_system="{}###"
    ),
    "vicuna_v1.1": Template(
        _VICUNA_SYSTEM + " ", "USER: ", " ASSISTANT:", "</s>", ("</s>",), before_answer=" ", own_system="{} "
    ),
    "llama2": Template(_SYSTEM, "<s>[INST] ", " [/INST] ", "", ("</s>",), own_system="{}"),
    "minigpt_v2": Template("", "<s>[INST] ", " [/INST]", "", ("</s>",)),
    "chatml": Template(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n",
        ("<|im_end|>", "<|im_start|>"),
        ("<|im_start|>", "<|im_end|>\n"),  # MiniGPT4Qwen's labels
        own_system="<|im_start|>system\n{}<|im_end|>\n",
    ),
    # stage 2's prompt_template, turn after turn
    "tiny": Template("", "###Human: ", " ###Assistant: ", "", ("###",)),
}
TOKENIZER = "tokenizer"


def get_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> Template | TokenizerTemplate:
    """Returns the template that `model.conversation` names; `tokenizer` is the one that the tokenizer brings.

    Raises:
        UserError: there is none of that name.
    """
    if name == TOKENIZER:
        if not tokenizer.chat_template:
            raise UserError(
                f"model.conversation: this LLM's tokenizer brings no template. Known: {', '.join(TEMPLATES)}."
            )
        return TokenizerTemplate(tokenizer)
    if name not in TEMPLATES:
        raise UserError(f"model.conversation: '{name}' is unknown.{did_you_mean(name, [*TEMPLATES, TOKENIZER])}")
    return TEMPLATES[name]
