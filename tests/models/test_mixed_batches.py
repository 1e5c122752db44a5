"""Batches whose samples have one picture, several, or none."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn, spaced
from minigpt4.conversation.prompter import IGNORE
from minigpt4.datasets.loading import Batch
from minigpt4.models.minigpt4 import MiniGPT4
from tests.batches import batch_of


def sample(seed: int, pictures: int, *turns: tuple[str, str]) -> Conversation:
    """A dialogue about so many pictures, which stand before its first question."""
    shown = torch.randn(pictures, 3, 56, 56, generator=torch.Generator().manual_seed(seed))
    (question, answer), *later = turns
    return Conversation([Turn(spaced([*shown, question]), answer), *(Turn([q], a) for q, a in later)])


SAMPLES = [
    sample(0, 2, ("which one?", "the second")),
    sample(1, 0, ("what is two and two?", "four")),
    sample(2, 1, ("what is this?", "a dog"), ("why?", "because it barks")),
    sample(3, 3, ("count.", "three")),
]


def losses(model: MiniGPT4, batch: Batch) -> Tensor:
    """The sum of each sample's losses, [B]."""
    images = model.encode_img(batch["pictures"]) if "pictures" in batch else None
    logits, labels, rows = model.label_logits(model.embed(batch["ids"], images), batch["mask"], batch["labels"])
    each = F.cross_entropy(logits, labels, reduction="none")
    return torch.zeros(len(batch["ids"])).index_add_(0, rows, each)


@pytest.mark.slow
@torch.inference_mode()
def test_each_sample_has_the_loss_that_it_has_alone(parity_model, parity_prompter):
    def of(samples: list[Conversation]) -> Tensor:
        return losses(parity_model, batch_of(parity_prompter, samples))

    together, alone = of(SAMPLES), torch.cat([of([sample]) for sample in SAMPLES])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    whole = parity_model(batch_of(parity_prompter, SAMPLES))
    torch.testing.assert_close(whole["loss"] * whole["tokens"], alone.sum(), atol=1e-4, rtol=1e-5)
    (first,) = SAMPLES[0].turns
    swapped = Conversation([Turn(spaced([*first.pictures[::-1], "which one?"]), first.answer)])
    assert not torch.allclose(of([swapped, *SAMPLES[1:]])[0], alone[0], atol=1e-4)


@torch.inference_mode()
def test_pictures_that_nothing_shows_are_an_error(parity_model, parity_prompter):
    batch = batch_of(parity_prompter, SAMPLES)
    rows = parity_prompter.rows
    with pytest.raises(UserError, match=f"layouts have slots for {6 * rows} image rows, and {rows} were given"):
        parity_model(batch | {"pictures": batch["pictures"][:1]})


def test_text_alone_has_a_gradient_of_zeros(parity_model, parity_prompter):
    """Else backward would fail, and other ranks would wait for this one's gradient."""
    batch = batch_of(parity_prompter, [SAMPLES[1]])
    assert "pictures" not in batch
    result = parity_model(batch)
    gradients = torch.autograd.grad(result["loss"], list(parity_model.projection.parameters()))
    assert not any(gradient.any() for gradient in gradients)
    with torch.no_grad():
        torch.testing.assert_close(result["loss"] * result["tokens"], losses(parity_model, batch).sum())


@pytest.mark.slow
def test_a_batch_without_labels_costs_nothing(parity_model, parity_prompter):
    """Of prompts alone there is nothing to learn; ranks still wait for their gradients."""
    batch = batch_of(parity_prompter, SAMPLES)
    batch["labels"].fill_(IGNORE)
    parity_model.zero_grad()
    result = parity_model(batch)
    result["loss"].backward()
    assert result["loss"] == 0 and result["tokens"] == 0
    assert not parity_model.projection.weight.grad.any()
