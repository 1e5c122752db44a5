"""Messages become the prompt that the chat would write, in every template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter
from transformers.utils.chat_template_utils import render_jinja_template

from minigpt4.common.errors import UserError
from minigpt4.conversation.chat import turns_of
from minigpt4.conversation.conversation import IMAGE, TEMPLATES, TokenizerTemplate, Turn
from minigpt4.conversation.pictures import Picture
from minigpt4.serve.dialogue import render
from minigpt4.serve.schema import Message

MESSAGES = TypeAdapter(list[Message])
PICTURE = {"type": "image_url", "image_url": {"url": "data:"}}
PART = st.one_of(st.just(PICTURE), st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=9)))
NO_PLACE = ("minigpt_v2", "tiny")


def rendered(template, messages: list[dict]) -> str:
    return render(template, MESSAGES.validate_python(messages))[0]


def system(text: str) -> dict:
    return {"role": "system", "content": text}


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
    prompt, images = render(TEMPLATES[name], MESSAGES.validate_python(messages[:-1]))
    assert prompt == TEMPLATES[name].prompt(turns)
    assert prompt.count("<ImageHere>") == len(images) == pictures


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
    assert template.with_system(own) == template


@pytest.mark.parametrize("name", NO_PLACE)
def test_some_templates_have_no_place_for_it(name):
    with pytest.raises(UserError, match="no place for a system message") as error:
        rendered(TEMPLATES[name], [system("Be brief."), {"role": "user", "content": "hello"}])
    assert error.value.param == "messages.0"


class _Tokenizer:
    """The part of a tokenizer that writes dialogues."""

    bos_token = "<s>"

    def __init__(self, jinja: str):
        self.jinja = jinja

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return render_jinja_template([messages], chat_template=self.jinja, add_generation_prompt=True)[0][0]


def test_a_tokenizers_template_decides_about_system_messages():
    takes = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + takes
    messages = [system("Be brief."), {"role": "user", "content": "hello"}]
    assert rendered(TokenizerTemplate(_Tokenizer(takes)), messages).startswith("system: Be brief.\nuser: hello")
    with pytest.raises(UserError, match="no system"):
        rendered(TokenizerTemplate(_Tokenizer(refuses)), messages)
    assert rendered(TokenizerTemplate(_Tokenizer(refuses)), messages[1:]).startswith("user: hello")


@pytest.mark.parametrize("text", ["<ImageHere>", "<Image<ImageHere>Here>", "<<ImageHere>ImageHere>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_words_make_no_place_for_a_picture(text, role):
    said = {"system": "a", "user": "b", "assistant": "c"} | {role: text}
    messages = [{"role": own, "content": words} for own, words in said.items()] + [{"role": "user", "content": "d"}]
    assert "<ImageHere>" not in rendered(TEMPLATES["vicuna_v0"], messages)


def test_several_questions_in_a_row_and_a_developers_message():
    messages = [{"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]}]
    messages += [{"role": "user", "content": [PICTURE]}, {"role": "user", "content": "What is it?"}]
    expected = TEMPLATES["vicuna_v0"].with_system("Be\nbrief.").prompt([Turn(IMAGE), Turn("What is it?")])
    assert rendered(TEMPLATES["vicuna_v0"], messages) == expected
