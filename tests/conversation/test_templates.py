"""Templates write dialogues exactly as the original did."""

from dataclasses import replace

import pytest
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn, joined, spaced
from minigpt4.conversation.prompter import Prompter
from minigpt4.conversation.templates import Template, get_template
from minigpt4.inference.chat import Chat
from minigpt4.inference.requests import Answer, Request
from minigpt4.models.llm import load_tokenizer
from tests.conftest import PARITY, golden_json
from tests.conversation import PICTURE, SHOWN, turns_of

NAMES = {
    "CONV_VISION_Vicuna0": "vicuna_v0",
    "CONV_VISION_LLama2": "llama2",
    "CONV_VISION_minigptv2": "minigpt_v2",
}
SPEC = golden_json("4_conversation")


@pytest.fixture
def tokenizer():
    return load_tokenizer(PARITY / "tokenizer")


@pytest.fixture
def prompter(parity_prompter, tokenizer):
    """Gives the prompter of a template, or of one of a name."""

    def of(template) -> Prompter:
        template = get_template(template, tokenizer) if isinstance(template, str) else template
        return replace(parity_prompter, template=template, window=10**6)

    return of


def text_of(prompter: Prompter, *turns: Turn, **conversation) -> str:
    """What the LLM reads of a dialogue, as the original writes it."""
    return prompter.text(prompter.read(Conversation(list(turns), **conversation)))


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
def test_prompts_after_every_step(name, case, prompter):
    own = prompter(name)
    recorded_uploads = sum(step["op"] == "upload_img" for step in case["steps"])
    turns = [Turn([PICTURE]) for _ in range(case["dialogue"]["img"] - recorded_uploads)]
    for step in case["steps"]:
        if step["op"] == "upload_img":
            turns.append(Turn([PICTURE]))
        elif step["op"] == "ask" and turns and turns[-1].answer is None:  # joins the image before it
            turns[-1].question = spaced([*turns[-1].question, step["text"]])
        elif step["op"] == "ask":
            turns.append(Turn([step["text"]]))
        elif step["op"] == "assistant answer":
            turns[-1].answer = step["text"]
        expected = step["prompt"]
        if step["op"] in ("upload_img", "ask"):  # nobody reads it before there is a place for the answer
            expected = expected.removesuffix(own.template.end) + own.template.assistant
        assert text_of(own, *turns) == expected
    assert text_of(own, *turns) == case["final_prompt"]
    if "final_messages" in case:
        assert [replace(turn, question=joined(turn.question)) for turn in turns] == turns_of(case["final_messages"])


class Listener:
    """An engine that notes the prompts it reads and gives the recorded answers."""

    def __init__(self, prompter: Prompter, answers: list[str | None]):
        self.prompter, self.answers = prompter, iter(answers)
        self.read: list[str] = []

    def embeddings(self, pictures) -> None:
        pass

    def answer(self, requests: list[Request]) -> list[Answer]:
        self.read += [text_of(self.prompter, *request.prompt.turns) for request in requests]
        return [Answer(next(self.answers) or "")]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda x: x if isinstance(x, str) else str(len(x["steps"])))
def test_a_session_asks_with_the_recorded_prompts(name, case, prompter):
    questions, answers = zip(*case["dialogue"]["turns"], strict=True)
    engine = Listener(prompter(name), answers)
    chat = Chat(engine)
    for _ in range(case["dialogue"]["img"]):
        chat.upload_img(Image.new("RGB", (4, 4)))
    for question in questions:
        chat.answer(question, num_beams=2)  # in one piece
    assert engine.read == [step["prompt"] for step in case["steps"] if step["op"] == "append assistant None"]


@pytest.mark.parametrize("recorded", NAMES)
def test_prompts_of_evaluation(recorded, prompter):
    own = prompter(NAMES[recorded])
    ours = [text_of(own, Turn(spaced([PICTURE, text]))) for text in SPEC["eval_utils.prepare_texts_input"]]
    assert ours == SPEC["eval_utils.prepare_texts"][recorded]


def test_the_style_with_two_separators(prompter):
    """No recorded template has it; Vicuna 1.1's does."""
    spec = SPEC["two_style"]
    (user, assistant), sep = spec["roles"], spec["sep"]
    template = Template(spec["system"] + sep, user, sep + assistant, spec["sep2"], ())
    assert text_of(prompter(template), *turns_of(spec["messages"])) == spec["prompt"]


@pytest.mark.parametrize("recorded", NAMES)
def test_the_strings_of_the_templates(recorded, tokenizer):
    spec, template = SPEC["templates"][recorded], get_template(NAMES[recorded], tokenizer)
    assert [template.system, template.user, template.assistant, template.end] == [
        spec["system"] + spec["sep"],
        spec["roles"][0],
        spec["sep"] + spec["roles"][1],
        spec["sep"],
    ]


def test_vicuna_1_1_is_fastchats(prompter):
    """FastChat is where Vicuna comes from; without it the string that it writes is compared."""
    turns = [Turn(["hi"], "yo"), Turn(["Where?"])]
    prompt = text_of(prompter("vicuna_v1.1"), *turns)
    assert prompt.endswith("user's questions. USER: hi ASSISTANT: yo</s>USER: Where? ASSISTANT:")
    theirs = pytest.importorskip("fastchat.conversation").get_conv_template("vicuna_v1.1")
    for turn in turns:
        theirs.append_message(theirs.roles[0], turn.words)
        theirs.append_message(theirs.roles[1], turn.answer)
    assert prompt == theirs.get_prompt()


def test_the_tiny_template_continues_stage_2s_prompt(prompter):
    tiny, asked = prompter("tiny"), [PICTURE, " What is it?"]
    first = text_of(tiny, Turn(asked))
    assert first == "###Human: {} ###Assistant: ".format(f"{SHOWN} What is it?")
    second = text_of(tiny, Turn(asked, "a 7"), Turn(["Where?"]))
    assert second == first + "a 7###Human: Where? ###Assistant: "


def test_a_beginning_of_an_answer_continues_behind_one_space(prompter, tokenizer):
    for name, between in {"vicuna_v0": "", "vicuna_v1.1": " ", "llama2": "", "minigpt_v2": " ", "chatml": ""}.items():
        own = prompter(name)
        for beginning in ("A red", "A red "):  # a space at the end would be a token of its own
            prompt = text_of(own, Turn(["hi"], "yo"), Turn(["What?"], beginning), continued=True)
            assert prompt.endswith(own.template.user + "What?" + own.template.assistant + between + "A red")
    tokenizer.chat_template = CHATML
    prompt = text_of(prompter("tokenizer"), Turn(["What?"], "A red "), continued=True)
    assert prompt == "<user>What?<end><assistant>A red"


def test_a_system_text_of_ones_own_has_its_place(prompter, tokenizer):
    own = {name: prompter(name) for name in ("vicuna_v0", "vicuna_v1.1", "llama2", "chatml")}
    turn = Turn([PICTURE, " What?"])
    for name, one in own.items():
        said = one.template.own_system.format("Be {brief}.")
        ours, default = text_of(one, turn, system="Be {brief}."), text_of(one, turn)
        assert ours == said + default.removeprefix(one.template.system) and said != one.template.system, name
    tokenizer.chat_template = CHATML
    assert text_of(prompter("tokenizer"), turn, system="Be brief.").startswith("<system>Be brief.<end><user><Img>")


@pytest.mark.parametrize("name", ["minigpt_v2", "tiny", "tokenizer"])
def test_a_system_text_without_a_place_stands_before_the_first_question(name, prompter, tokenizer):
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    own = prompter(name)
    turns = [Turn([PICTURE, " What?"], "a 7"), Turn(["Where?"])]
    moved = [Turn(["Be brief.\n", *turns[0].question], "a 7"), turns[1]]
    assert text_of(own, *turns, system="Be brief.") == text_of(own, *moved)
    assert text_of(own, *turns, system="") == text_of(own, *turns)
    assert text_of(own, Turn([]), system="Be brief.") == text_of(own, Turn(["Be brief."]))
    assert turns[0].question == [PICTURE, " What?"]  # as its owner has it


def test_an_unknown_template_is_named(tokenizer):
    with pytest.raises(UserError, match="Did you mean 'vicuna_v0'"):
        get_template("vicuna_0", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="brings no template"):
        get_template("tokenizer", tokenizer)


CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
CHATML += "{% if add_generation_prompt %}<assistant>{% endif %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def test_the_tokenizers_template_takes_several_images_in_a_row(prompter, tokenizer):
    tokenizer.chat_template = ALTERNATES
    turns = [Turn([PICTURE]), Turn([PICTURE, " One?"], "yes"), Turn([PICTURE]), Turn(["Two?"])]
    prompt = text_of(prompter("tokenizer"), *turns)
    assert prompt == f"<user>{SHOWN}\n{SHOWN} One?<assistant>yes<user>{SHOWN}\nTwo?"


def test_a_template_that_refuses_a_dialogue_is_named(prompter, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no pictures, please') }}"
    with pytest.raises(UserError, match=r"model.conversation: .* refuses the dialogue \(no pictures, please\)"):
        text_of(prompter("tokenizer"), Turn(["hi"]))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content.replace('\ue000', '') }}{% endfor %}"
    with pytest.raises(UserError, match=r"model.conversation: .* refuses the dialogue \(it drops a picture\)"):
        text_of(prompter("tokenizer"), Turn([PICTURE, "hi"]))


def test_pictures_keep_their_places_whatever_is_said(prompter, tokenizer):
    """The tokenizer's own template renders text alone, in which something must stand for the pictures."""
    tokenizer.chat_template = CHATML
    said = "\ue000\ue001"
    pictures = [object(), object()]
    turns = [Turn([said, pictures[0], said], said), Turn([pictures[1]])]
    parts = prompter("tokenizer").read(Conversation(turns, system="\ue002"))
    assert [part for part in parts if not isinstance(part, str)] == pictures
    texts = [part for part in parts if isinstance(part, str)]
    assert texts[0] == f"<system>\ue002<end><user>{said}<Img>" and texts[2] == "</Img><end><assistant>"
