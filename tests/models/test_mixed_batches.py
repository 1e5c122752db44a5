"""Batches whose samples have one picture, several, or none."""

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.datasets.loading import collate

IMAGE = "<Img><ImageHere></Img>"


def sample(seed: int, pictures: int, question: str, answer: str) -> dict:
    pixels = torch.randn(pictures, 3, 56, 56, generator=torch.Generator().manual_seed(seed))
    return {
        "image": None if not pictures else pixels[0] if pictures == 1 else pixels,
        "conv_q": " ".join([IMAGE] * pictures + [question]),
        "conv_a": answer,
        "connect_sym": "\x1e",
    }


SAMPLES = [
    sample(0, 2, "which one?", "the second"),
    sample(1, 0, "what is two and two?", "four"),
    sample(2, 1, "what is this?\x1ewhy?", "a dog\x1ebecause it barks"),
    sample(3, 3, "count.", "three"),
]


@torch.inference_mode()
def test_each_sample_has_the_loss_that_it_has_alone(parity_model):
    together = parity_model._losses(collate(SAMPLES), "sum")
    alone = torch.cat([parity_model._losses(collate([s]), "sum") for s in SAMPLES])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    other = [{**SAMPLES[0], "image": SAMPLES[0]["image"].flip(0)}, *SAMPLES[1:]]
    assert not torch.allclose(parity_model._losses(collate(other), "sum")[0], alone[0], atol=1e-4)


@torch.inference_mode()
def test_pictures_that_nothing_shows_are_an_error(parity_model):
    batch = collate(SAMPLES) | {"image": [None, None, SAMPLES[2]["image"], None]}
    with pytest.raises(UserError, match="prompts hold 6 <ImageHere> but 1 images"):
        parity_model(batch)
    empty = [torch.zeros(0, 3, 56, 56), None]
    assert parity_model(collate([SAMPLES[1]] * 2) | {"image": empty})["loss"].isfinite()


def test_text_alone_has_a_gradient_of_zeros(parity_model):
    """Else backward would fail, and other ranks would wait for this one's gradient."""
    samples = collate([SAMPLES[1]])
    result = parity_model(samples)
    gradients = torch.autograd.grad(result["loss"], list(parity_model.projection.parameters()))
    assert not any(gradient.any() for gradient in gradients)
    with torch.no_grad():
        torch.testing.assert_close(result["loss"] * result["tokens"], parity_model._losses(samples, "sum").sum())
