"""Options of an answer as visitors write them."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation
from minigpt4.inference.decoding import Decoding
from minigpt4.inference.options import AnswerOptions


def test_defaults_are_those_of_generate_but_for_the_length():
    request = AnswerOptions().request(Conversation([]))
    assert (request.max_new_tokens, request.seed, request.decoding) == (300, None, Decoding())
    assert vars(AnswerOptions()) == {"max_new_tokens": 300, "seed": None} | asdict(Decoding())


def test_values_are_parsed_by_type():
    options = AnswerOptions().changed(["num_beams=3", "do_sample=True", "temperature=0.5", "seed=7", "top_p=1"])
    assert options == AnswerOptions(num_beams=3, do_sample=True, temperature=0.5, seed=7, top_p=1.0)
    assert options.changed(["do_sample=no"]).without_effect() == ["temperature", "top_p", "seed"]
    assert options.without_effect() == []


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("num_beams", "'num_beams' has no value. Write key=value"),
        ("num_beam=3", "'num_beam' is not an option of an answer. Did you mean 'num_beams'?"),
        ("num_beams=2.5", "num_beams: '2.5' is not a whole number"),
        ("num_beams=__import__('os')", "is not a whole number"),
        ("do_sample=maybe", "do_sample: 'maybe' is not true or false"),
        ("length_penalty=nan", "length_penalty: 'nan' is not a number"),
        ("temperature=", "temperature: '' is not a number"),
        ("top_p=2", "top_p: 2.0 is out of range"),
        ("seed=-1", "seed: -1 is out of range"),
        (f"seed={2**63}", "is out of range. Set it to 0 to"),
    ],
)
def test_what_makes_no_sense_is_refused(setting, complaint):
    with pytest.raises(UserError) as error:
        AnswerOptions().changed(["do_sample=true", setting])
    assert complaint in str(error.value)


@given(st.text())
def test_nothing_but_a_user_error_comes_of_any_words(words):
    try:
        assert isinstance(AnswerOptions().changed(words.split()), AnswerOptions)
    except UserError as error:
        assert "\n" not in str(error).strip("'") or "\n" in words
