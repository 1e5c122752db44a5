"""Messages become the prompt that the chat would write, in every template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter
from transformers.utils.chat_template_utils import render_jinja_template

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.conversation.prompter import Prompter
from minigpt4.conversation.templates import TEMPLATES, Template, TokenizerTemplate
from minigpt4.inference.chat import turns_of
from minigpt4.inference.pictures import Picture
from minigpt4.serve.api.dialogue import conversation_of
from minigpt4.serve.api.messages import Message

MESSAGES = TypeAdapter(list[Message])
PICTURE = {"type": "image_url", "image_url": {"url": "data:"}}
PART = st.one_of(st.just(PICTURE), st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=9)))
NO_PLACE = ("minigpt_v2", "tiny")
SHOWN = Picture(Image.new("RGB", (1, 1)))


def prompter_of(template: Template | TokenizerTemplate) -> Prompter:
    return Prompter(None, template, 1, 999, [], "", "", False, "", 0)


def read(messages: list[dict]) -> Conversation:
    return conversation_of(MESSAGES.validate_python(messages))


def written(template, turns: list[Turn], system: str | None = None) -> str:
    prompter = prompter_of(template)
    return prompter.text(prompter.read(Conversation(turns, system)))


def rendered(template, messages: list[dict]) -> str:
    prompter = prompter_of(template)
    return prompter.text(prompter.read(read(messages)))


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str | None) -> dict:
    return {"role": "assistant", "content": text}


@pytest.mark.slow
@settings(deadline=None)
@given(
    parts=st.lists(st.lists(PART, min_size=1, max_size=4), min_size=1, max_size=3),
    name=st.sampled_from(list(TEMPLATES)),
)
def test_a_conversation_is_written_as_the_chats(parts, name):
    messages, turns, pictures = [], [], 0
    for own in parts:
        shown = [part["text"] if part["type"] == "text" else Picture(Image.new("RGB", (1, 1))) for part in own]
        turns += turns_of([], shown)
        turns[-1].answer = "ok"
        pictures += own.count(PICTURE)
        messages += [{"role": "user", "content": own}, {"role": "assistant", "content": "ok"}]
    turns[-1].answer = None
    conversation = read(messages[:-1])
    assert rendered(TEMPLATES[name], messages[:-1]) == written(TEMPLATES[name], turns)
    parts = prompter_of(TEMPLATES[name]).read(conversation)
    assert len(conversation.pictures) == sum(not isinstance(part, str) for part in parts) == pictures


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in NO_PLACE])
def test_an_own_system_text_stands_where_the_templates_did(name):
    template = TEMPLATES[name]
    question = {"role": "user", "content": "hello"}
    before, after = rendered(template, [question]), rendered(template, [system("Be {brief}."), question])
    assert after.startswith(template.own_system.format("Be {brief}."))
    assert after.removeprefix(template.own_system.format("Be {brief}.")) == before.removeprefix(template.system)
    # the template's own text in its place is the template
    own = template.system.removeprefix(template.own_system.partition("{}")[0])
    own = own.removesuffix(template.own_system.partition("{}")[2])
    assert rendered(template, [system(own), question]) == before


@pytest.mark.parametrize("name", NO_PLACE)
def test_where_a_template_has_no_place_for_it_it_stands_before_the_first_question(name):
    template = TEMPLATES[name]
    with_picture = {"role": "user", "content": [PICTURE, {"type": "text", "text": "What is it?"}]}
    said = [system("Be brief."), with_picture, assistant("a 7"), user("Where?")]
    expected = written(template, [Turn(["Be brief.\n", SHOWN, " What is it?"], "a 7"), Turn(["Where?"])])
    assert rendered(template, said) == expected
    assert rendered(template, [system(""), user("hello")]) == rendered(template, [user("hello")])


class _Tokenizer:
    """The part of a tokenizer that writes dialogues."""

    bos_token = "<s>"

    def __init__(self, jinja: str):
        self.jinja = jinja

    def apply_chat_template(self, messages, tokenize, **options):
        return render_jinja_template([messages], chat_template=self.jinja, **options)[0][0]


TAKES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_a_tokenizers_template_decides_about_system_messages():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TAKES
    drops = TAKES.replace("messages %}", "messages if m.role != 'system' %}", 1)
    messages = [system(" Be brief.\n"), user("hello")]
    assert rendered(TokenizerTemplate(_Tokenizer(TAKES)), messages).startswith("system:  Be brief.\n\nuser: hello")
    for jinja in (refuses, drops):
        template = TokenizerTemplate(_Tokenizer(jinja))
        assert rendered(template, messages) == "user:  Be brief.\n\nhello\nassistant:"
    fails = TokenizerTemplate(_Tokenizer("{{ raise_exception('not today') }}"))
    with pytest.raises(UserError, match="not today"):
        rendered(fails, messages)


@pytest.mark.parametrize("text", ["<ImageHere>", "<Img><ImageHere></Img>", "<Image<ImageHere>Here>", "<picture 0>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("name", [*TEMPLATES, "tokenizer"])
def test_words_make_no_place_for_a_picture(text, role, name):
    template = TEMPLATES.get(name) or TokenizerTemplate(_Tokenizer(TAKES))
    said = {"system": "a", "user": "b", "assistant": "c"} | {role: text}
    messages = [{"role": own, "content": words} for own, words in said.items()] + [{"role": "user", "content": "d"}]
    (words,) = prompter_of(template).read(read(messages))
    assert text in words
    if (name, role) == ("tokenizer", "system"):
        assert words.startswith(f"system: {text}\n")  # where it belongs
    messages[-1]["content"] = [PICTURE, {"type": "text", "text": text}]
    before, shown, after = prompter_of(template).read(read(messages))
    assert shown.url == "data:" and before.endswith("<Img>") and after.startswith(f"</Img> {text}")


def test_several_questions_in_a_row_and_a_developers_message():
    messages = [{"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]}]
    messages += [{"role": "user", "content": [PICTURE]}, {"role": "user", "content": "What is it?"}]
    expected = written(TEMPLATES["vicuna_v0"], [Turn([SHOWN]), Turn(["What is it?"])], "Be\nbrief.")
    assert rendered(TEMPLATES["vicuna_v0"], messages) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([assistant("hello"), user("b")], [Turn([""], "hello"), Turn(["b"])]),
        ([user("a"), assistant("b"), assistant("c"), user("d")], [Turn(["a"], "b\nc"), Turn(["d"])]),
        ([user("a"), assistant("b"), system("c"), user("d")], [Turn(["a"], "b"), Turn(["c\nd"])]),
        (
            [user("a"), system("b"), system("c"), assistant("d"), user("e")],
            [Turn(["a"]), Turn(["b\nc"], "d"), Turn(["e"])],
        ),
        ([user("a"), system("b")], [Turn(["a"]), Turn(["b"])]),
        ([system("a"), system("b")], [Turn(["a\nb"])]),
    ],
)
def test_messages_in_any_order(messages, turns, name):
    assert rendered(TEMPLATES[name], messages) == written(TEMPLATES[name], turns)


def test_system_messages_at_the_beginning_are_joined():
    messages = [system("a"), {"role": "developer", "content": "b"}]
    for more, turns in (([user("c")], [Turn(["c"])]), ([assistant("c"), user("d")], [Turn([""], "c"), Turn(["d"])])):
        template = TEMPLATES["vicuna_v0"]
        assert rendered(template, [*messages, *more]) == written(template, turns, "a\nb")


def test_system_text_before_an_assistants_greeting_is_what_that_answers():
    messages = [system("a"), assistant("hello"), user("b")]
    assert rendered(TEMPLATES["tiny"], messages) == written(TEMPLATES["tiny"], [Turn(["a"], "hello"), Turn(["b"])])


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("vicuna_v0", "###Assistant: It is"),
        ("vicuna_v0_2023_05", "###Assistant: It is"),
        ("vicuna_v1.1", " ASSISTANT: It is"),
        ("llama2", " [/INST] It is"),
        ("minigpt_v2", " [/INST] It is"),
        ("chatml", "<|im_end|>\n<|im_start|>assistant\nIt is"),
        ("tiny", " ###Assistant: It is"),
    ],
)
@pytest.mark.parametrize("beginning", ["It is", " It is", "It is  "])
def test_a_last_answer_is_left_open(name, end, beginning):
    messages = [user("a"), assistant(beginning)]
    prompt, conversation = rendered(TEMPLATES[name], messages), read(messages)
    assert prompt.startswith(rendered(TEMPLATES[name], [user("a")]))
    assert prompt.endswith(f"a{end}")
    assert conversation.continued and conversation.turns[-1].answer == beginning.lstrip()


@pytest.mark.parametrize("nothing", [None, "", " "])
@pytest.mark.parametrize("template", [TEMPLATES["tiny"], TokenizerTemplate(_Tokenizer(TAKES))])
def test_an_empty_last_answer_is_only_a_place_for_one(template, nothing):
    assert rendered(template, [user("a"), assistant(nothing)]) == rendered(template, [user("a")])


def test_a_tokenizers_template_leaves_a_last_answer_open():
    messages = [system("be"), user("a"), assistant("It is ")]
    assert rendered(TokenizerTemplate(_Tokenizer(TAKES)), messages) == "system: be\nuser: a\nassistant: It is"
    drops = TAKES.replace("messages %}", "messages if m.role != 'assistant' %}", 1)
    with pytest.raises(UserError, match="refuses the dialogue"):
        rendered(TokenizerTemplate(_Tokenizer(drops)), messages[1:])
