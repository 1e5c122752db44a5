"""From the messages of a request to the one string that the LLM reads."""

from collections.abc import Sequence

from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.chat import turns_of
from minigpt4.conversation.conversation import Template, TokenizerTemplate, Turn
from minigpt4.conversation.pictures import Picture
from minigpt4.models.splice import without_places
from minigpt4.serve.schema import ImagePart, ImageUrl, Message, SystemMessage, TextPart, UserMessage

_SOME_PICTURE = Picture(Image.new("RGB", (1, 1)))  # a prompt holds where pictures are, not which


class MessageError(UserError):
    """A message that has no place in the dialogue; `param` says where it is."""

    def __init__(self, index: int, message: str):
        super().__init__(message)
        self.param = f"messages.{index}"


def render(template: Template | TokenizerTemplate, messages: Sequence[Message]) -> tuple[str, list[ImageUrl]]:
    """Returns the prompt, and the pictures for its places.

    Raises:
        UserError: the template has no place for a message, or refuses the dialogue.
    """
    turns: list[Turn] = []
    images: list[ImageUrl] = []
    for index, message in enumerate(messages):
        parts = [TextPart(type="text", text=c)] if isinstance(c := message.content, str) else c or []
        if isinstance(message, UserMessage):
            images += [part.image_url for part in parts if isinstance(part, ImagePart)]
            turns += turns_of([], [part.text if isinstance(part, TextPart) else _SOME_PICTURE for part in parts])
            continue
        text = without_places("\n".join(part.text for part in parts if isinstance(part, TextPart)))
        if isinstance(message, SystemMessage):
            if index:
                raise MessageError(index, "a system message can only be the first.")
            try:
                template = template.with_system(text)
            except UserError as error:
                raise MessageError(index, str(error)) from None
        elif not turns or turns[-1].answer is not None:
            raise MessageError(index, "an assistant's message must follow a user's.")
        else:
            turns[-1].answer = text
    if not turns or turns[-1].answer is not None:
        raise MessageError(len(messages) - 1, "the last message must be the user's.")
    return template.prompt(turns), images
