"""Fixtures of sessions: with the real model, and with one that says what a test sets."""

import pytest
import torch

from minigpt4.inference.chat import Chat
from minigpt4.inference.requests import Answer
from tests.inference.talking import Call


@pytest.fixture
def chat(parity_engine) -> Chat:
    return Chat(parity_engine)


@pytest.fixture
def script(parity_engine):
    """Makes the engine say given pieces; an exception among them is its failure. Returns the calls it got."""

    def install(*pieces: str | Exception) -> list[Call]:
        calls: list[Call] = []

        def answer(requests):
            (request,) = requests
            prompter, pictures = parity_engine.prompter, request.prompt.pictures
            images = torch.stack(parity_engine.embeddings(pictures)) if pictures else None
            calls.append(Call(images, prompter.text(prompter.read(request.prompt)), request))
            said = ""
            for piece in pieces:
                if isinstance(piece, Exception):
                    return [Answer(finish="error", error=piece)]
                said += piece
                if request.on_text:
                    request.on_text(said)
            return [Answer(said)]

        parity_engine.answer = answer  # a copy of the test's own
        return calls

    return install
