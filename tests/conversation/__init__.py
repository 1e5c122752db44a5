"""What the tests of dialogues share."""

from minigpt4.conversation.conversation import Turn


def turns_of(messages: list[list[str | None]]) -> list[Turn]:
    """Messages of two roles; a user's that follows another user's begins a turn of its own."""
    turns: list[Turn] = []
    for role, text in messages:
        if role == messages[0][0]:
            turns.append(Turn(text))
        else:
            turns[-1].answer = text
    return turns
