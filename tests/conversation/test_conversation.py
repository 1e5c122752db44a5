"""Templates write dialogues exactly as the original did."""

import pytest
import torch
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import IMAGE, Template, Turn, get_template
from minigpt4.inference.chat import Chat
from minigpt4.models.llm import load_tokenizer
from tests.conftest import PARITY, golden_json
from tests.conversation import turns_of

NAMES = {
    "CONV_VISION_Vicuna0": "vicuna_v0",
    "CONV_VISION_LLama2": "llama2",
    "CONV_VISION_minigptv2": "minigpt_v2",
}
SPEC = golden_json("4_conversation")


class Tokenizer:
    """As much of a tokenizer as a template needs."""

    chat_template = None


def first_version(case: dict) -> dict:
    """A dialogue of the first version, written as those of the final one: it notes no uploads."""
    steps = []
    for question, answer in case["dialogue"]["turns"]:
        steps += [{"op": "ask", "text": question}, {"op": "append assistant None"}]
        steps += [{"op": "assistant answer", "text": answer}] if answer is not None else []
    prompts = zip(steps, case["prompts"], strict=True)
    return case | {
        "steps": [step | {"prompt": prompt} for step, prompt in prompts],
        "final_prompt": case["prompts"][-1],
    }


CASES = [(NAMES[case["template"]], case) for case in SPEC["dialogues"]]
CASES += [("vicuna_v0_2023_05", first_version(case)) for case in golden_json("7_v1")["conversation"]["dialogues"]]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda x: x if isinstance(x, str) else str(len(x["steps"])))
def test_prompts_after_every_step(name, case):
    template = get_template(name, Tokenizer())
    recorded_uploads = sum(step["op"] == "upload_img" for step in case["steps"])
    turns = [Turn(IMAGE) for _ in range(case["dialogue"]["img"] - recorded_uploads)]
    for step in case["steps"]:
        if step["op"] == "upload_img":
            turns.append(Turn(IMAGE))
        elif step["op"] == "ask" and turns and turns[-1].answer is None:  # joins the image before it
            turns[-1].question += f" {step['text']}"
        elif step["op"] == "ask":
            turns.append(Turn(step["text"]))
        elif step["op"] == "assistant answer":
            turns[-1].answer = step["text"]
        expected = step["prompt"]
        if step["op"] in ("upload_img", "ask"):  # nobody reads it before there is a place for the answer
            expected = expected.removesuffix(template.end) + template.assistant
        assert template.prompt(turns) == expected
    assert template.prompt(turns) == case["final_prompt"]
    if "final_messages" in case:
        assert turns == turns_of(case["final_messages"])


class Listener:
    """A model that notes the prompts it reads and gives the recorded answers."""

    device = torch.device("cpu")
    max_context_len = 10**6
    max_images = 100

    def __init__(self, template: Template, answers: list[str | None]):
        self.template, self.answers = template, iter(answers)
        self.read: list[str] = []

    def encode_img(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def layout(self, prompt: str) -> str:
        return prompt

    def length(self, prompt: str, most: float) -> int:
        return len(prompt)

    def generate(self, images, texts, **options) -> list[str]:
        self.read += texts
        return [next(self.answers) or ""]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda x: x if isinstance(x, str) else str(len(x["steps"])))
def test_a_session_asks_with_the_recorded_prompts(name, case):
    questions, answers = zip(*case["dialogue"]["turns"], strict=True)
    model = Listener(get_template(name, Tokenizer()), answers)
    chat = Chat(model, lambda _: torch.zeros(1))
    for _ in range(case["dialogue"]["img"]):
        chat.upload_img(Image.new("RGB", (4, 4)))
    for question in questions:
        chat.answer(question, num_beams=2)  # in one piece
    assert model.read == [step["prompt"] for step in case["steps"] if step["op"] == "append assistant None"]


@pytest.mark.parametrize("recorded", NAMES)
def test_prompts_of_evaluation(recorded):
    template = get_template(NAMES[recorded], Tokenizer())
    ours = [template.prompt([Turn(f"{IMAGE} {text}")]) for text in SPEC["eval_utils.prepare_texts_input"]]
    assert ours == SPEC["eval_utils.prepare_texts"][recorded]


def test_the_style_with_two_separators():
    """No recorded template has it; Vicuna 1.1's does."""
    spec = SPEC["two_style"]
    (user, assistant), sep = spec["roles"], spec["sep"]
    template = Template(spec["system"] + sep, user, sep + assistant, spec["sep2"], ())
    assert template.prompt(turns_of(spec["messages"])) == spec["prompt"]


@pytest.mark.parametrize("recorded", NAMES)
def test_the_strings_of_the_templates(recorded):
    spec, template = SPEC["templates"][recorded], get_template(NAMES[recorded], Tokenizer())
    assert [template.system, template.user, template.assistant, template.end] == [
        spec["system"] + spec["sep"],
        spec["roles"][0],
        spec["sep"] + spec["roles"][1],
        spec["sep"],
    ]


def test_vicuna_1_1_is_fastchats():
    """FastChat is where Vicuna comes from; without it the string that it writes is compared."""
    turns = [Turn("hi", "yo"), Turn("Where?")]
    prompt = get_template("vicuna_v1.1", Tokenizer()).prompt(turns)
    assert prompt.endswith("user's questions. USER: hi ASSISTANT: yo</s>USER: Where? ASSISTANT:")
    theirs = pytest.importorskip("fastchat.conversation").get_conv_template("vicuna_v1.1")
    for turn in turns:
        theirs.append_message(theirs.roles[0], turn.question)
        theirs.append_message(theirs.roles[1], turn.answer)
    assert prompt == theirs.get_prompt()


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
