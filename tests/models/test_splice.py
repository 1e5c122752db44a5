"""splice: every layout is embedded as a naive per-sample loop would, for any number of texts and images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minigpt4.common.errors import UserError
from minigpt4.conversation.prompter import IMAGE_ROW
from minigpt4.models.splice import pad, splice

EMBED = nn.Embedding(50, 6)
ROWS = 3
layouts = st.lists(
    st.lists(st.one_of(st.integers(0, 49).map(lambda i: [i]), st.just([IMAGE_ROW] * ROWS)), min_size=1, max_size=8).map(
        lambda parts: [i for part in parts for i in part]
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(layouts, st.sampled_from([0, 1, None]))
def test_splice_equals_a_loop(rows, behind):
    count = sum(row.count(IMAGE_ROW) for row in rows) // ROWS
    images = torch.randn(count, ROWS, 6) if count else None
    ids, mask = pad(rows, 0, behind)
    embeds = splice(ids, images, EMBED)
    flat = iter(images.flatten(0, 1)) if count else iter(())
    for index, row in enumerate(rows):
        expected = torch.stack([next(flat) if i == IMAGE_ROW else EMBED.weight[i] for i in row])
        assert torch.equal(embeds[index][mask[index].bool()], expected)
        assert mask[index].sum() == len(row)


def test_gradients_reach_the_images_only_through_their_slots():
    images = torch.randn(1, ROWS, 6, requires_grad=True)
    ids, _ = pad([[1, *[IMAGE_ROW] * ROWS, 2]], 0)
    splice(ids, images, EMBED)[0, 2].sum().backward()
    assert torch.equal(images.grad[0].sum(-1), torch.tensor([0.0, 6.0, 0.0]))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_placeholders_and_images_must_agree(count):
    ids, _ = pad([[1, *[IMAGE_ROW] * ROWS, *[IMAGE_ROW] * ROWS]], 0)
    images = torch.randn(count, ROWS, 6) if count else None
    with pytest.raises(UserError, match=f"slots for 6 image rows, and {3 * count} were given"):
        splice(ids, images, EMBED)
