"""Splices image embeddings into text: pure functions from token ids and tensors to padded LLM inputs.

Image rows fill the slots of a layout (see `conversation.prompter`) in order, so a batch needs no index beyond its
layouts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minigpt4.common.errors import UserError
from minigpt4.conversation.prompter import IMAGE_ROW


def pad(rows: Sequence[Sequence[int]], value: int, behind: int | None = None) -> tuple[Tensor, Tensor]:
    """Pads id lists to tensors: ids [B, T] and a mask [B, T] that is 1 on what was there, 0 on padding.

    The padding goes behind the first so many ids: 0 is left padding, None right padding.
    """
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for own_ids, own_mask, row in zip(ids, mask, rows, strict=True):
        first = len(row) if behind is None else behind
        rest = length - len(row) + first
        own_ids[:first], own_ids[rest:] = torch.tensor(row[:first]), torch.tensor(row[first:])
        own_mask[:first] = own_mask[rest:] = 1
    return ids, mask


def splice(ids: Tensor, images: Tensor | None, embed_tokens: Callable[[Tensor], Tensor]) -> Tensor:
    """Embeds layouts.

    Args:
        ids: layouts [B, T], padded.
        images: image embeddings [N, rows, D] of the whole batch in order of appearance; None when there are none.
        embed_tokens: the LLM's input embedding, [B, T] -> [B, T, D].

    Returns:
        Embeddings [B, T, D]; gradients flow into `images`.

    Raises:
        UserError: there are more or fewer slots than rows.
    """
    is_image = ids == IMAGE_ROW
    slots, rows = int(is_image.sum()), 0 if images is None else images.shape[0] * images.shape[1]
    if slots != rows:
        raise UserError(f"the layouts have slots for {slots} image rows, and {rows} were given.")
    embeds = embed_tokens(ids.masked_fill(is_image, 0))
    if images is None:
        return embeds
    return embeds.masked_scatter(is_image.unsqueeze(-1), images.to(embeds.dtype))
