"""Many sessions of one model."""

import gc
import weakref

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.inference.chat import Chat
from minigpt4.inference.sessions import Sessions
from tests.inference.talking import picture


def test_sessions_share_nothing(parity_engine, script):
    calls = script("fine")
    one, two = Chat(parity_engine), Chat(parity_engine)
    one.upload_img(picture("red"))
    two.upload_img(picture("blue"))
    one.answer("About red?")
    two.answer("About blue?")
    assert "red" not in calls[1].prompt
    assert not torch.equal(calls[0].images, calls[1].images)
    one.restart()
    assert (len(one.turns), len(two.turns), len(two.pictures)) == (0, 1, 1)


@pytest.mark.slow
def test_idle_sessions_drop_their_cache_then_their_embeddings_and_nobody_notices(parity_engine):
    sessions, alone = Sessions(parity_engine, max_sessions=1), Chat(parity_engine)
    chats = [sessions.open() for _ in range(6)]
    for chat in (*chats, alone):
        chat.answer([picture("red"), "What is it?"], max_new_tokens=6)
    assert [chat.pictures[0].embedding is not None for chat in chats] == [False] * 2 + [True] * 4
    expected = alone.answer("Where?", max_new_tokens=6)
    for chat in reversed(chats):
        assert chat.answer("Where?", max_new_tokens=6) == expected
        assert (chat.reused_tokens > 0) == (chat is chats[-1])
    shown = [sessions.open() for _ in range(6)]  # who shows and never asks counts too
    for chat in shown:
        chat.upload_img(picture("blue"))
    assert [chat.pictures[0].embedding is not None for chat in (*chats, *shown)] == [False] * 8 + [True] * 4
    left = [weakref.ref(chat) for chat in (*chats, *shown)]
    del chats, shown, chat
    gc.collect()
    assert not any(chat() for chat in left)
    with pytest.raises(UserError, match="max_sessions: 0 is out of range"):
        Sessions(parity_engine, max_sessions=0)
