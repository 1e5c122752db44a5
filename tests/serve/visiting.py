"""What a visitor's browser does, done by gradio_client."""

from collections.abc import Sequence
from pathlib import Path

from gradio_client import Client, handle_file
from PIL import Image

from minigpt4.inference.chat import Chat
from minigpt4.inference.engine import Engine

OPTIONS = ["Greedy", 5, 1, 0.9, 1, 1, 0, 8, -1]  # mode, beams, temperature, top-p, penalties, min, max, seed


def message(text: str, files: Sequence[Path] = ()) -> dict:
    return {"text": text, "files": [handle_file(file) for file in files]}


def ask(client: Client, text: str, *files: Path, options: Sequence = OPTIONS) -> list[str]:
    return texts(client.predict(message(text, files), *options, api_name="/ask"))


def texts(shown: tuple) -> list[str]:
    """The messages of what an event shows, without their pictures."""
    return [part["text"] for said in shown[0] for part in said["content"] if part["type"] == "text"]


def pictures(shown: tuple) -> int:
    return sum(part["type"] == "file" for said in shown[0] for part in said["content"])


def number_of(engine: Engine, *colors: str) -> str:
    chat = Chat(engine)
    chat.upload_img(*(Image.new("RGB", (40, 30), color) for color in colors))
    return f"{len(colors)} {sum(p.embedding.double().sum() for p in chat.pictures):.3f}"
