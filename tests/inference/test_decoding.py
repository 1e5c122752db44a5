"""How tokens are chosen: draws, and options out of range."""

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.inference.decoding import Decoding, SeededDraw


def test_draws_follow_the_distribution():
    scores = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(4000, -1)
    drawn = SeededDraw(list(range(4000)))(torch.zeros(4000, 0), scores).argmax(-1)
    shares = drawn.bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.03, rtol=0)
    assert shares[3] == 0


def test_only_the_likeliest_words_are_drawn():
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(300, -1)
    for top_p, possible in ((0.4, 1), (0.7, 2), (0.9, 3), (1.0, 4)):
        decoding = Decoding(do_sample=True, temperature=1, top_p=top_p, repetition_penalty=1)
        drawn = decoding.processors(range(300))(torch.zeros(300, 0, dtype=torch.long), scores).argmax(-1)
        assert set(drawn.tolist()) == set(range(possible))
    decoding = Decoding(do_sample=True, temperature=1, top_p=1, repetition_penalty=1)
    drawn = decoding.processors(range(300))(
        torch.zeros(300, 0, dtype=torch.long), torch.zeros(300, 99) - torch.arange(99) / 999
    )
    assert 40 < len(set(drawn.argmax(-1).tolist())) <= 50 and drawn.argmax(-1).max() < 50


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 0),
        ("min_new_tokens", 21),
        ("min_new_tokens", -1),
        ("num_beams", 0),
        ("temperature", 0.0),
        ("temperature", 1e-40),
        ("top_p", 1.5),
        ("repetition_penalty", -1.0),
    ],
)
def test_options_out_of_range(option, value, parity_engine):
    with pytest.raises(UserError, match=rf"{option}: {value} is out of range. Set it to "):
        parity_engine.generate(None, ["hello"], **{"do_sample": True, option: value})


def test_whole_numbers_are_taken_for_floats(parity_engine):
    options = {"do_sample": True, "seed": 1, "max_new_tokens": 4}
    whole = parity_engine.generate(None, ["a dog"], temperature=1, top_p=1, repetition_penalty=1, **options)
    assert whole == parity_engine.generate(
        None, ["a dog"], temperature=1.0, top_p=1.0, repetition_penalty=1.0, **options
    )
