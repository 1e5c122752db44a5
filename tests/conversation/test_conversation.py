"""Templates write dialogues exactly as the original did."""

import pytest

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import IMAGE, Turn, get_template
from tests.conftest import golden_json

NAMES = {
    "CONV_VISION_Vicuna0": "vicuna_v0",
    "CONV_VISION_LLama2": "llama2",
    "CONV_VISION_minigptv2": "minigpt_v2",
}
# dialogues that alternate; one message after another of the same role is not a turn
DIALOGUES = [d for d in golden_json("4_conversation")["dialogues"] if len(d["final_messages"]) % 2 == 0]


@pytest.mark.parametrize("case", DIALOGUES, ids=lambda c: f"{c['template']}-{len(c['final_messages'])}")
def test_prompts_equal_the_recorded_ones(case):
    messages = [text for _, text in case["final_messages"]]
    turns = [Turn(q, a) for q, a in zip(messages[::2], messages[1::2], strict=True)]
    assert get_template(NAMES[case["template"]]).prompt(turns) == case["final_prompt"]


def test_there_are_recorded_dialogues():
    assert len(DIALOGUES) >= 12


def test_the_tiny_template_continues_stage_2s_prompt():
    template = get_template("tiny")
    first = template.prompt([Turn(f"{IMAGE} What is it?")])
    assert first == "###Human: {} ###Assistant: ".format(f"{IMAGE} What is it?")
    second = template.prompt([Turn(f"{IMAGE} What is it?", "a 7"), Turn("Where?")])
    assert second == first + "a 7###Human: Where? ###Assistant: "


def test_an_unknown_template_is_named():
    with pytest.raises(UserError, match="Did you mean 'vicuna_v0'"):
        get_template("vicuna_0")
