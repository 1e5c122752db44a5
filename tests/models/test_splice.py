"""splice: every layout is embedded as a naive per-sample loop would, for any number of texts and images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minigpt4.common.errors import UserError
from minigpt4.conversation.prompter import IMAGE_ROW, prompt_layout
from minigpt4.models.splice import IGNORE, pad, splice, training_batch

EMBED = nn.Embedding(50, 6)
ROWS = 3
layouts = st.lists(
    st.lists(st.one_of(st.integers(0, 49).map(lambda i: [i]), st.just([IMAGE_ROW] * ROWS)), min_size=1, max_size=8).map(
        lambda parts: [i for part in parts for i in part]
    ),
    min_size=1,
    max_size=5,
)


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
    with pytest.raises(UserError, match=f"<ImageHere> but {count} images"):
        splice(ids, images, EMBED)


def test_a_prompt_may_begin_or_end_with_an_image():
    encode = lambda text: [len(text)]  # noqa: E731
    assert prompt_layout("<ImageHere>", encode, 2) == [IMAGE_ROW] * 2
    assert prompt_layout("abc<ImageHere><ImageHere>", encode, 1) == [3, IMAGE_ROW, IMAGE_ROW]
    assert prompt_layout("", encode, 2) == []


@pytest.mark.parametrize("bos", [None, 1])
def test_labels_are_what_is_learned_and_nothing_else(bos):
    examples = [[(5, False), (IMAGE_ROW, False), (7, True), (8, True)], [(6, False), (4, False), (9, True)]]
    ids, mask, labels = training_batch(examples, bos)
    assert labels[labels != IGNORE].tolist() == [7, 8, 9]
    assert ids[labels != IGNORE].tolist() == [7, 8, 9]
    assert mask.sum().item() == 7 + (2 if bos else 0)
    assert (labels[mask == 0] == IGNORE).all()
