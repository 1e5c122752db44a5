"""Conversation templates: how a dialogue becomes the one string that the LLM reads. A template is data."""

from dataclasses import dataclass

from minigpt4.common.errors import UserError, did_you_mean

IMAGE = "<Img><ImageHere></Img>"

_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)


@dataclass
class Turn:
    """One question and, once given, its answer. `question` holds `<Img><ImageHere></Img>` for each image."""

    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Template:
    """The strings around a dialogue: system, then for each turn user + question + assistant + answer + end."""

    system: str
    user: str
    assistant: str
    end: str
    stop: tuple[str, ...]  # generation ends where one of these appears

    def prompt(self, turns: list[Turn]) -> str:
        """Renders a dialogue; it ends where the answer of the last, unanswered turn begins."""
        text = self.system
        for turn in turns:
            text += self.user + turn.question + self.assistant
            if turn.answer is not None:
                text += turn.answer + self.end
        return text


TEMPLATES = {
    "vicuna_v0": Template(_SYSTEM + "###", "Human: ", "###Assistant: ", "###", ("###",)),
    "llama2": Template(_SYSTEM, "<s>[INST] ", " [/INST] ", "", ("</s>",)),
    "minigpt_v2": Template("", "<s>[INST] ", " [/INST]", "", ("</s>",)),
    # stage 2's prompt_template, turn after turn
    "tiny": Template("", "###Human: ", " ###Assistant: ", "", ("###",)),
}


def get_template(name: str) -> Template:
    """Returns the template that `model.conversation` names.

    Raises:
        UserError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise UserError(f"model.conversation: '{name}' is unknown.{did_you_mean(name, TEMPLATES)}")
    return TEMPLATES[name]
