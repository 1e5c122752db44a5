"""What is asked, and who may answer it: a model here, or whatever has the same methods."""

from minigpt4.inference.chat import Chat
from minigpt4.inference.requests import Answer
from tests.inference.talking import picture


class Elsewhere:
    """Stands for a model in another process: it has a prompter, and no model."""

    def __init__(self, prompter):
        self.prompter, self.processor = prompter, lambda image: image
        self.asked = []

    def answer(self, requests):
        for request in requests:
            self.asked.append(self.prompter.read(request.prompt))
            request.on_text("A dog")
        return [Answer("A dog.", new_tokens=3) for _ in requests]

    def embeddings(self, pictures):
        return None


def test_a_chat_needs_no_model_in_its_process(parity_prompter):
    elsewhere = Elsewhere(parity_prompter)
    chat = Chat(elsewhere)
    chat.upload_img(picture("red"))
    assert list(chat.stream("What is it?")) == ["A dog", "A dog."]
    assert chat.answer("Where?") == "A dog."
    first, second = ("".join(p for p in asked if isinstance(p, str)) for asked in elsewhere.asked)
    assert "What is it?" in first and "A dog." not in first and "A dog." in second and "Where?" in second
