"""Templates write dialogues exactly as the original did."""

import pytest

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import IMAGE, Turn, get_template
from minigpt4.models.llm import load_tokenizer
from tests.conftest import PARITY, golden_json

NAMES = {
    "CONV_VISION_Vicuna0": "vicuna_v0",
    "CONV_VISION_LLama2": "llama2",
    "CONV_VISION_minigptv2": "minigpt_v2",
}
DIALOGUES = golden_json("4_conversation")["dialogues"]


class Tokenizer:
    """As much of a tokenizer as a template needs."""

    chat_template = None


def turns_of(messages: list[list[str | None]]) -> list[Turn]:
    """Messages of two roles; a user's that follows another user's begins a turn of its own."""
    turns: list[Turn] = []
    for role, text in messages:
        if role == messages[0][0]:
            turns.append(Turn(text))
        else:
            turns[-1].answer = text
    return turns


@pytest.mark.parametrize("case", DIALOGUES, ids=lambda c: f"{c['template']}-{len(c['final_messages'])}")
def test_prompts_equal_the_recorded_ones(case):
    template = get_template(NAMES[case["template"]], Tokenizer())
    assert template.prompt(turns_of(case["final_messages"])) == case["final_prompt"]


FIRST_VERSION = golden_json("7_v1")["conversation"]["dialogues"]


@pytest.mark.parametrize("case", FIRST_VERSION, ids=lambda c: str(len(c["dialogue"]["turns"])))
def test_prompts_of_the_first_version_equal_the_recorded_ones(case):
    turns = [Turn(question, answer) for question, answer in case["dialogue"]["turns"]]
    images = case["dialogue"]["img"]
    if images:
        turns[0].question = f"{IMAGE} {turns[0].question}"
    turns = [Turn(IMAGE) for _ in range(images - 1)] + turns
    assert get_template("vicuna_v0_2023_05", Tokenizer()).prompt(turns) == case["prompts"][-1]


def test_the_tiny_template_continues_stage_2s_prompt():
    template = get_template("tiny", Tokenizer())
    first = template.prompt([Turn(f"{IMAGE} What is it?")])
    assert first == "###Human: {} ###Assistant: ".format(f"{IMAGE} What is it?")
    second = template.prompt([Turn(f"{IMAGE} What is it?", "a 7"), Turn("Where?")])
    assert second == first + "a 7###Human: Where? ###Assistant: "


def test_an_unknown_template_is_named():
    with pytest.raises(UserError, match="Did you mean 'vicuna_v0'"):
        get_template("vicuna_0", Tokenizer())
    with pytest.raises(UserError, match="brings no template"):
        get_template("tokenizer", Tokenizer())


ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def test_the_tokenizers_template_takes_several_images_in_a_row():
    tokenizer = load_tokenizer(PARITY / "tokenizer")
    tokenizer.chat_template = ALTERNATES
    template = get_template("tokenizer", tokenizer)
    turns = [Turn(IMAGE), Turn(f"{IMAGE} One?", "yes"), Turn(IMAGE), Turn("Two?")]
    assert template.prompt(turns) == f"<user>{IMAGE}\n{IMAGE} One?<assistant>yes<user>{IMAGE}\nTwo?"


def test_a_template_that_refuses_a_dialogue_is_named():
    tokenizer = load_tokenizer(PARITY / "tokenizer")
    tokenizer.chat_template = "{{ raise_exception('no pictures, please') }}"
    with pytest.raises(UserError, match=r"model.conversation: .* refuses the dialogue \(no pictures, please\)"):
        get_template("tokenizer", tokenizer).prompt([Turn("hi")])
