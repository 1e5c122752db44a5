"""From the messages of a request to a conversation."""

from collections.abc import Sequence
from itertools import groupby

from minigpt4.conversation.conversation import Conversation, Turn, spaced
from minigpt4.serve.api.messages import ImagePart, Message, SystemMessage, TextPart, UserMessage


def conversation_of(messages: Sequence[Message]) -> Conversation:
    """A request's messages as a conversation, whose pictures are `ImagePart`s.

    System messages at the beginning are joined to the system text. A later one stands before the question that follows
    it, or is one itself. Answers in a row are joined, and one that no question precedes answers an empty one. An answer
    at the end is the beginning of the one that is asked for.
    """
    # nothing but system messages: they are the question
    first = next((at for at, message in enumerate(messages) if not isinstance(message, SystemMessage)), 0)
    turns: list[Turn] = []
    waiting: list[str] = []  # system texts before the next question
    for kind, group in groupby(messages[first:], type):
        if kind is UserMessage:
            for parts in map(_parts, group):
                question = spaced(part.text if isinstance(part, TextPart) else part for part in parts)
                turns.append(Turn([*(text + "\n" for text in waiting), *question]))
                waiting = []
        elif kind is SystemMessage:
            waiting = list(map(_text, group))
        else:
            if waiting or not turns:
                turns.append(Turn(["\n".join(waiting)]))
                waiting = []
            turns[-1].answer = "\n".join(map(_text, group))
    if waiting:
        turns.append(Turn(["\n".join(waiting)]))
    turns[-1].answer = (turns[-1].answer or "").lstrip() or None
    system = "\n".join(map(_text, messages[:first])) if first else None
    return Conversation(turns, system, continued=True)


def _parts(message: Message) -> Sequence[TextPart | ImagePart]:
    content = message.content
    return [TextPart(type="text", text=content)] if isinstance(content, str) else content or []


def _text(message: Message) -> str:
    return "\n".join(part.text for part in _parts(message) if isinstance(part, TextPart))
