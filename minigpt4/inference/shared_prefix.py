"""What all prompts of a batch begin with: it is read once for all of them."""

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from minigpt4.conversation.prompter import IMAGE_ROW
from minigpt4.inference.caches import can_keep

_WORTH_A_PASS = 64  # embeddings not read; a pass over a few takes as long as the next token


@dataclass(frozen=True)
class SharedPrefix:
    """What the prompts of a batch begin with.

    Attributes:
        length: words and image rows; 0 where that is not worth a pass of its own.
        first: for each prompt the number of the first one that begins with the same: prompts may show different
            pictures within this length.
    """

    length: int
    first: list[int]

    @property
    def saved(self) -> int:
        """How many embeddings need not be read."""
        return self.length * (len(self.first) - len(set(self.first)))

    def read(self, llm: Any, cache: DynamicCache, embeds: Tensor) -> None:
        """Reads it into an empty cache, of prompts [B, T, D], each beginning once, and repeats it for all prompts."""
        read = sorted(set(self.first))
        # the decoder alone: no logits
        llm.get_decoder()(inputs_embeds=embeds[read, : self.length], past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor([read.index(row) for row in self.first], device=embeds.device))


def shared_prefix(
    llm: PreTrainedModel, layouts: Sequence[list[int]], pictures: Sequence[Sequence[Hashable]] | None = None
) -> SharedPrefix:
    """Finds what all prompts begin with: the words before the first picture, or all where pictures are the same.

    Args:
        layouts: of the prompts.
        pictures: what each prompt shows, in order; without them no picture is shared.

    Returns:
        Nothing for an LLM that does not take positions from the mask: the padding then lies between these words and
        the rest.
    """
    first, last = min(layouts), max(layouts)  # what these two have in common, all between them have
    most = min(map(len, layouts)) - 1  # of each at least one is left to read
    common = first[: next((i for i in range(most) if first[i] != last[i]), most)]
    words = common.index(IMAGE_ROW) if IMAGE_ROW in common else len(common)
    found = SharedPrefix(words, [0] * len(layouts))
    if words < len(common) and pictures is not None and all(pictures):
        rows = layouts[0].count(IMAGE_ROW) // len(pictures[0])
        whole, partly = divmod(common.count(IMAGE_ROW), rows)
        if partly:  # it ends within a picture
            places = [i for i, token in enumerate(common) if token == IMAGE_ROW]
            common = common[: places[whole * rows]]
        keys = [tuple(own[:whole]) for own in pictures]
        found = max(found, SharedPrefix(len(common), [keys.index(key) for key in keys]), key=lambda own: own.saved)
    takes_positions = "position_ids" in inspect.signature(llm.get_decoder().forward).parameters
    useful = found.saved >= _WORTH_A_PASS and takes_positions and can_keep(llm)
    return found if useful else SharedPrefix(0, found.first)
