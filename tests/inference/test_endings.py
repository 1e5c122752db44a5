"""When an answer ends, and what is said of it: token by token."""

from dataclasses import replace

import pytest
import torch

from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.inference.endings import Ending, Endings
from minigpt4.inference.requests import Request
from tests.inference.talking import asked, spelled

STOP_ID = 2


class Recorded:
    """An ending, and what it reports."""

    def __init__(self, prompter, stops=("###",), limit=99, own_stops=(), beginning=""):
        self.counts, self.texts, self.ends = [], [], []
        self.tokenizer = prompter.tokenizer
        self.ending = Ending(
            Request(
                Conversation([Turn([], beginning)], continued=bool(beginning)),
                stops=own_stops,
                on_token=self.counts.append,
                on_text=self.texts.append,
            ),
            replace(prompter, template=replace(prompter.template, stop=stops)),
            [STOP_ID],
            limit,
            lambda ending: self.ends.append((ending.text, ending.finish, len(ending.tokens))),
        )

    def say(self, *what: str | int) -> "Recorded":
        """Texts, spelled, and token ids."""
        for own in what:
            for token in spelled(self.tokenizer, own) if isinstance(own, str) else [own]:
                self.ending.put(token)
        return self


@pytest.fixture
def prompter(parity_prompter):
    return parity_prompter


@pytest.mark.parametrize(
    ("said", "texts", "tokens"),
    [
        ("a red 7 ### Human: more", ["a", "a r", "a re", "a red", "a red 7"], 11),
        ("a red 7###", ["a", "a r", "a re", "a red", "a red 7"], 10),
        ("C# 7###", ["C", "C# 7"], 7),
        ("###", [], 3),
    ],
)
def test_half_a_stop_marker_is_never_shown(said, texts, tokens, prompter):
    answer = Recorded(prompter).say(said)
    assert answer.texts == texts
    assert answer.ends == [([*texts, ""][len(texts) - 1] if texts else "", "stop", tokens)]
    assert answer.counts == list(range(1, tokens + 1))  # nothing behind the end


def test_half_a_character_is_never_shown(prompter):
    answer = Recorded(prompter, limit=13).say("a 🐶 dog é")
    assert answer.texts == ["a", "a 🐶", "a 🐶 d", "a 🐶 do", "a 🐶 dog", "a 🐶 dog é"]
    assert answer.ends == [("a 🐶 dog é", "length", 13)]
    assert Recorded(prompter, limit=5).say("a 🐶 dog é").ends == [("a", "length", 5)]


def test_words_that_end_an_answer_may_come_in_pieces(prompter):
    words, tokenizer = ("é🐶", "###"), prompter.tokenizer
    for text in ("a dogé🐶", "a ###", "###", "dog 7. é🐶 and"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        first = next(n for n in range(len(tokens) + 1) if any(word in tokenizer.decode(tokens[:n]) for word in words))
        answer = Recorded(prompter, words)
        ended = [bool(answer.say(token).ends) for token in tokens]
        assert ended == [n >= first for n in range(1, len(tokens) + 1)]
        assert answer.ends[0][1:] == ("stop", first)
    assert not Recorded(prompter, words).say(*tokenizer.encode("a dog ## #é 🐶", add_special_tokens=False)).ends


def test_a_stop_token_ends_an_answer_and_is_counted(prompter):
    answer = Recorded(prompter).say("a red#", STOP_ID, "dog")
    assert answer.ends == [("a red#", "stop", 7)]
    assert answer.texts[-1] == "a red#"  # it is no longer the beginning of a marker


def test_of_the_templates_marker_no_beginning_is_left_where_the_limit_comes(prompter):
    assert Recorded(prompter, limit=6).say("a red#").ends == [("a red", "length", 6)]


def test_of_a_stop_string_that_was_asked_for_a_beginning_is_left_where_the_limit_comes(prompter):
    """It is a part of the answer as any other, and was held back only until that was clear."""
    answer = Recorded(prompter, limit=5, own_stops=("dish",)).say("a red")
    assert answer.texts == ["a", "a r", "a re", "a red"]
    assert answer.ends == [("a red", "length", 5)]
    whole = Recorded(prompter, limit=99, own_stops=("dish",)).say("a red dish here")
    assert whole.ends == [("a red", "stop", 10)]


def test_what_is_interrupted_keeps_what_was_said(prompter):
    answer = Recorded(prompter).say("a red#")
    answer.ending.interrupt()
    answer.ending.interrupt()
    answer.say(" 7")
    answer.ending.close()
    assert answer.ends == [("a red", "interrupt", 6)]


@pytest.mark.parametrize(("limit", "finish"), [(5, "length"), (6, "stop")])
def test_there_may_be_no_more_tokens(limit, finish, prompter):
    answer = Recorded(prompter, limit=limit).say("a red")
    answer.ending.close()
    assert answer.ends == [("a red", finish, 5)]


@pytest.mark.parametrize(("beginning", "text"), [("It is", " a dog"), ("It is ", "a dog"), ("", "a dog")])
def test_a_beginning_is_continued(beginning, text, prompter):
    answer = Recorded(prompter, limit=6, beginning=beginning).say(" a dog")
    assert answer.ends == [(text, "length", 6)]
    assert all(text.startswith(own) for own in answer.texts)


def test_an_interrupt_is_heeded_at_the_next_token(prompter):
    rows = [Recorded(prompter), Recorded(prompter)]
    ends = Endings([row.ending for row in rows], beams=False)
    for number, token in enumerate(spelled(prompter.tokenizer, "a red")):
        if number == 3:
            rows[0].ending.request.interrupt.set()
        assert ends(torch.tensor([[0] * number + [token]] * 2), torch.empty(0)).tolist() == [number >= 3, False]
    assert rows[0].ends == [("a re", "interrupt", 4)] and not rows[1].ends


@pytest.mark.slow
def test_a_row_ends_at_the_token_that_ends_it(parity_engine):
    """The LLM does not read on to learn of it."""
    read = []
    (whole,) = parity_engine.answer(asked(parity_engine, ["hello"], max_new_tokens=12))
    (request,) = asked(parity_engine, ["hello"], max_new_tokens=12)
    request.stops = (whole[4:7],)
    handle = parity_engine.model.llm.register_forward_hook(lambda *_: read.append(1) and None)
    try:
        (answer,) = parity_engine.answer([request])
    finally:
        handle.remove()
    assert answer.finish == "stop" and answer == whole[:4].rstrip()
    assert len(read) == answer.new_tokens < 12
