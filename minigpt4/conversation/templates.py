"""Templates: the strings that an LLM expects around a dialogue. A template is data, in `templates.yaml`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jinja2 import TemplateError

from minigpt4.common.errors import UserError, did_you_mean, first_line
from minigpt4.conversation.conversation import Conversation, Part, free_place, with_pictures

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """The strings around a dialogue: system, then for each turn user + question + assistant + answer + end.

    A turn without an answer that is not the last (an image shown before the question) is user + question + end.

    Attributes:
        stop: generation ends where one of these appears.
        learned: markers that training's loss counts outside answers too.
        before_answer: what stands between assistant and an answer that is known.
        own_system: how a conversation's own system text is written; empty where there is no place for one.
    """

    system: str
    user: str
    assistant: str
    end: str
    stop: Sequence[str]
    learned: Sequence[str] = ()
    before_answer: str = ""
    own_system: str = ""

    def render(self, conversation: Conversation) -> list[Part]:
        """What the LLM reads: text and the pictures. It ends where the answer of the last turn begins, or continues.

        Raises:
            UserError: the conversation has a system text, and there is no place for one.
        """
        if conversation.system is not None and not self.own_system:
            raise UserError(
                "this model's prompt has no place for a system message. Leave it out, or say it in the first question."
            )
        system = self.system if conversation.system is None else self.own_system.format(conversation.system)
        parts: list[Part] = [system]
        *_, last = conversation.turns
        for turn in conversation.turns:
            parts += [self.user, *turn.question]
            if turn.answer is None:
                parts.append(self.assistant if turn is last else self.end)
            elif turn is last and conversation.continued:
                # tokens of words begin with the space before them: one at the end would stand alone
                parts += [self.assistant, " " * (not self.assistant[-1].isspace()), turn.answer.rstrip(" ")]
            else:
                parts += [self.assistant, self.before_answer, turn.answer, self.end]
        return parts


@dataclass(frozen=True)
class TokenizerTemplate:
    """The chat template that a tokenizer brings along, for any other LLM."""

    tokenizer: "PreTrainedTokenizerBase"
    stop: Sequence[str] = ()  # the end-of-sequence ids do it
    learned: Sequence[str] = ()

    def render(self, conversation: Conversation) -> list[Part]:
        """What the LLM reads, without the BOS that generation puts in front; see `Template.render`.

        Turns without an answer join the next message: many templates demand that user and assistant alternate.

        Raises:
            UserError: the template refuses the dialogue, or drops the system text or a picture.
        """
        turns = conversation.turns
        texts = (text for turn in turns for text in (turn.words, turn.answer or ""))
        place = free_place([conversation.system or "", *texts])
        messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
        asked = list[str]()
        for turn in turns:
            asked.append("".join(part if isinstance(part, str) else place for part in turn.question))
            if turn.answer is not None or turn is turns[-1]:
                messages.append({"role": "user", "content": "\n".join(asked)})
                asked = []
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        continued = conversation.continued and turns[-1].answer is not None
        if continued:
            messages[-1]["content"] = messages[-1]["content"].rstrip(" ")  # see `Template.render`
        try:
            text = str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=not continued, continue_final_message=continued
                )
            )
        except (TemplateError, ValueError) as error:  # ValueError: it has no way to leave an answer open
            raise self._refused(first_line(error)) from error
        if (conversation.system or "").strip() not in text:
            raise self._refused("it drops the system message")
        try:
            return with_pictures(text.removeprefix(self.tokenizer.bos_token or ""), place, conversation.pictures)
        except ValueError:
            raise self._refused("it drops a picture") from None

    def _refused(self, why: str) -> UserError:
        return UserError(
            f"model.conversation: the template of this LLM's tokenizer refuses the dialogue ({why}). "
            f"Known: {', '.join(TEMPLATES)}."
        )


_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
TEMPLATES = {name: Template(**strings) for name, strings in _DATA.items()}
SYSTEM = TEMPLATES["llama2"].system  # the original demo's
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
