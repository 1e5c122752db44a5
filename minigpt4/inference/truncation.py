"""What the model no longer reads of a conversation that is too long for it: pure functions."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from minigpt4.conversation.conversation import Turn

_KEPT = 0.75  # of the budget for what can be forgotten, when some must be


def remembered(turns: Sequence[Turn], forgotten: int) -> list[Turn]:
    """What the model reads of a dialogue: of its `forgotten` oldest answered turns the pictures alone."""
    left: list[Turn] = []
    for turn in turns:
        if turn.answer is None or not forgotten:
            left.append(turn)
            continue
        forgotten -= 1
        if turn.pictures:
            left.append(Turn(turn.pictures))
    return left


def to_forget(turns: Sequence[Turn], forgotten: int, budget: float, length_of: Callable[[list[Turn]], int]) -> int:
    """How many of the oldest answered turns lose their words, never an image: all, where no number makes it fit.

    What was forgotten stays so. Once more must be, a quarter of the budget is made free: else each further turn would
    forget another, and all behind it, which then stands in another place, would have to be read again.

    Args:
        forgotten: how many have lost them.
        budget: tokens that the prompt may have.
        length_of: tokens of a dialogue; each try reads all of it.
    """
    answered = sum(turn.answer is not None for turn in turns)

    def length(forgotten: int) -> int:
        return length_of(remembered(turns, forgotten))

    if length(0) <= budget:
        return 0
    if (forgotten := min(forgotten, answered)) and length(forgotten) <= budget:
        return forgotten
    least = length(answered)
    return bisect_left(range(answered), True, key=lambda n: length(n) <= least + _KEPT * (budget - least))
