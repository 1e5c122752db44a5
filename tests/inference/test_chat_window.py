"""A session that is longer than the model reads at once."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.chat import Chat
from tests.conftest import golden, golden_json
from tests.inference.talking import IMAGE, picture, written


def prompt_of(chat: Chat, turns: Sequence[Turn]) -> str:
    return chat.engine.prompter.text(chat.engine.prompter.read(Conversation(list(turns))))


def layout_of(chat: Chat, turns: Sequence[Turn]) -> list[int]:
    return chat.engine.prompter.layout(chat.engine.prompter.read(Conversation(list(turns))))


def test_of_a_too_long_chat_the_oldest_turns_lose_their_words_but_not_their_images(chat, script):
    calls = script("fine")
    chat.upload_img(picture("red"))
    for question in ("One?", "Two?", "Three?"):
        chat.answer(question, max_new_tokens=10)
    assert chat.forgotten == 0
    whole = layout_of(chat, [*chat.turns, Turn(["Four?"])])
    chat.engine.prompter = replace(chat.engine.prompter, window=len(whole) + 9)
    chat.answer("Four?", max_new_tokens=10)
    images, prompt, _ = calls[3]
    left = [Turn(chat.pictures), *chat.turns[chat.forgotten : 3], Turn(["Four?"])]
    assert (prompt, len(images)) == (prompt_of(chat, left), 1) and 0 < chat.forgotten < 3
    assert written(chat.turns) == [f"{IMAGE} One?", "Two?", "Three?", "Four?"]  # still on the page


@pytest.mark.slow
def test_a_full_window_is_made_free_for_several_turns_at_once(chat):
    """So that the turns after it find what the model has read where it was."""
    chat.engine.prompter = replace(chat.engine.prompter, window=330)
    chat.upload_img(picture("red"))
    lengths = {"max_new_tokens": 8, "min_new_tokens": 8}
    seen = []
    for number in range(24):
        answer = list(chat.stream(f"Number {number}, and what is it?", **lengths))[-1]
        seen.append((chat.forgotten, chat.reused_tokens / answer.prompt_tokens))
    full = seen[[forgotten > 0 for forgotten, _ in seen].index(True) :]
    again = [share for (before, _), (after, share) in pairwise(full) if before == after]
    assert [forgotten for forgotten, _ in full] == sorted(forgotten for forgotten, _ in full)
    assert len(again) > len(full) / 2 and min(again) > 0.8
    chat.undo()
    chat.engine.prompter = replace(chat.engine.prompter, window=1024)
    chat.answer("All of it?", **lengths)
    assert chat.forgotten == 0  # there is room again


def test_what_to_forget_of_a_long_chat_is_found_in_few_tries(chat, script, monkeypatch):
    calls, tries, layout = script("fine"), [], Prompter.layout
    chat.turns = [Turn(["word " * 10], "fine") for _ in range(300)]
    with monkeypatch.context() as patch:
        patch.setattr(Prompter, "layout", lambda self, parts: tries.append(parts) or layout(self, parts))
        chat.answer("Four?", max_new_tokens=10)
    assert 1 < chat.forgotten < 300 and len(tries) < 12
    one_more = layout_of(chat, [*chat.turns[chat.forgotten - 1 : -1], Turn(["Four?"])])
    least, room = len(layout_of(chat, [Turn(["Four?"])])), chat.engine.prompter.window - 10
    read = len(chat.engine.prompter.layout([calls[0].prompt]))
    assert read <= least + 0.75 * (room - least) < len(one_more)


def test_to_forget_pictures_many_at_a_time_shortens_the_dialogue(chat, script):
    calls = script("fine")
    for _ in range(2):
        chat.answer([*map(picture, ["red"] * 8), "Who?"], max_new_tokens=10)
    asked = [*chat.turns, Turn(["Who?"])]
    chat.engine.prompter = replace(chat.engine.prompter, window=len(layout_of(chat, asked)) + 10)
    chat.answer("Who?", max_new_tokens=10)
    assert (calls[2].prompt, chat.forgotten) == (prompt_of(chat, asked), 0)
    read = [Turn(chat.turns[0].pictures), Turn(chat.turns[1].pictures), Turn(["Who?"])]
    chat.engine.prompter = replace(chat.engine.prompter, window=len(layout_of(chat, read)) + 10)
    chat.answer("Who?", max_new_tokens=10)
    assert (calls[3].prompt, chat.forgotten) == (prompt_of(chat, read), 3)
    with pytest.raises(UserError, match="tokens too long"):
        chat.answer("Who? " * 99, max_new_tokens=10)
    assert chat.forgotten == 3  # as before: the next that is asked forgets what it must, and says so


def test_an_answer_longer_than_the_window(chat):
    with pytest.raises(UserError, match="max_new_tokens: 1024 leaves nothing of the 1024 tokens"):
        chat.answer("One?", max_new_tokens=1024)


def test_a_message_that_cannot_fit_says_by_how_much(chat):
    chat.upload_img(picture("red"))
    asked = layout_of(chat, [Turn([*chat.pictures, " One?"])])
    chat.engine.prompter = replace(chat.engine.prompter, window=len(asked) + 2)
    with pytest.raises(UserError, match="The message is 3 tokens too long: .* 5 of them kept for its answer"):
        chat.answer("One?", max_new_tokens=5)
    assert chat.turns == []
    assert isinstance(chat.answer("One?", max_new_tokens=2), str)  # the image is still there


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["vicuna0", "llama2", "v2"])
def test_the_originals_answers_where_it_cuts_off_what_came_first(flavour, parity_engines, monkeypatch):
    """Quirk 9, both values: with the original's cut ours gives `chat.short_max_length`; ours says what is too long."""
    engine, turns = parity_engines[flavour], golden_json(f"3_{flavour}")["chat"]["short_max_length"]
    pictures = golden("3_images")["images_alt_int8" if flavour == "v2" else "images_int8"] / 32
    llm = engine.model.llm
    generate = llm.generate

    def cut(inputs_embeds, attention_mask, past_key_values, **options):
        kept = turns[0]["kwargs"]["max_length"] - turns[0]["kwargs"]["max_new_tokens"]
        return generate(inputs_embeds=inputs_embeds[:, -kept:], attention_mask=attention_mask[:, -kept:], **options)

    monkeypatch.setattr(llm, "generate", cut)
    engine.processor = lambda _: pictures[0]
    chat = Chat(engine)
    chat.upload_img(picture("red"))
    for turn in turns:
        options = {"repetition_penalty": 1.05, "do_sample": True} | turn["kwargs"]
        del options["max_length"]
        assert chat.answer(turn["question"], **options) == turn["answer"]

    engine.prompter = replace(engine.prompter, window=turns[0]["kwargs"]["max_length"])
    again = Chat(engine)
    again.upload_img(picture("red"))
    with pytest.raises(UserError, match="tokens too long"):
        again.answer(turns[0]["question"], max_new_tokens=turns[0]["kwargs"]["max_new_tokens"])
