"""Tasks, a picture to draw boxes on, and what is asked about before the visitor has shown anything."""

import json
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from minigpt4.common.paths import ASSETS
from minigpt4.inference.boxes import TASKS
from minigpt4.serve.web.handlers import Handlers
from minigpt4.serve.web.visitor import Message, PageUpdate, Visitor


def task_side(tasks: list[str], message: gr.MultimodalTextbox, examples: list[Path]) -> None:
    """Buttons that put a task's token before the question, and a picture on which to draw a box for it.

    All of it happens in the browser: words that are typed while a server answers would be lost.
    """
    private: dict[str, Any] = {"api_visibility": "private"}
    with gr.Row(elem_id="tasks"):
        for task in tasks:
            button = gr.Button(f"[{task}]", size="sm", min_width=80)
            button.click(None, message, message, js=_with_task(task), **private)
    with gr.Accordion("Draw a box on the picture, and ask what is in it", open=True):
        html, css, js = ((ASSETS / f"box_picker.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
        picture = example_url(*examples[:1])
        picker = gr.HTML(html_template=html, css_template=css, js_on_load=js, picture=picture, elem_id="box")
    with_box, example = (ASSETS / "with_box.js").read_text(encoding="utf-8"), json.dumps(_files(examples[:1]))
    picker.input(None, message, message, js=f"(message) => ({with_box})(message, {example})", **private)


def _with_task(task: str) -> str:
    """`in_task` in JavaScript."""
    tokens = rf"^\s*\[({'|'.join(TASKS)})\]\s*"
    return f'(message) => [{{...message, text: "[{task}] " + message.text.replace(/{tokens}/, "")}}]'


def _files(examples: list[Path]) -> list[dict[str, Any]]:
    """Files of a message, as gradio's pages write them."""
    return [
        {
            "path": str(file),
            "url": example_url(file),
            "orig_name": file.name,
            "mime_type": mimetypes.guess_type(file)[0],
            "meta": {"_type": "gradio.FileData"},
        }
        for file in examples
    ]


def example_url(*examples: Path) -> str:
    """Where a page finds the first example, which is one of its static files; "" without one."""
    return f"gradio_api/file={quote(str(examples[0]))}" if examples else ""


def first_screen(examples: list[Path]) -> str:
    """What stands where the conversation will be."""
    how = "Drop, paste or attach pictures or a video, then ask about them."
    if not examples:
        return how
    picture = f'<img src="{example_url(*examples[:1])}" alt="an example">'
    return f"{picture}<br>Ask one of the questions below about this picture. Or: {how}"


@dataclass(frozen=True)
class Start:
    """The questions to start with. They are asked about an example, if there is one and nothing was shown."""

    questions: list[str]
    examples: list[Path]
    handlers: Handlers

    def question(self, chosen: int, message: Message, visitor: Visitor | None) -> Message:
        """Puts a question into the message box."""
        shown = message["files"] if _has_pictures(message, visitor) else [str(file) for file in self.examples]
        return {"text": self.questions[chosen], "files": shown}

    def ask(self, message: Message, *options_and_visitor: Any) -> Iterator[PageUpdate]:
        """Asks it; without a picture it waits in the message box for one."""
        if not _has_pictures(message, options_and_visitor[-1]):
            raise gr.Error("Show a picture first, then send this question about it.", print_exception=False)
        yield from self.handlers.ask(message, *options_and_visitor)


def _has_pictures(message: Message, visitor: Visitor | None) -> bool:
    return bool(message["files"] or (visitor and visitor.chat.pictures))
