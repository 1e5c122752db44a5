"""Tasks, a picture to draw boxes on, and what is asked about before the visitor has shown anything."""

import mimetypes
import re
from dataclasses import dataclass
from filecmp import cmp
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from PIL import Image

import minigpt4
from minigpt4.inference.boxes import TASKS, in_task
from minigpt4.processors.picture_file import thumbnail_url
from minigpt4.serve.web.visitor import Message, Visitor

_PICKER = Path(minigpt4.__file__).parent / "assets"
_FIRST_PICTURE = 320  # pixels


def task_side(tasks: list[str], message: gr.MultimodalTextbox) -> gr.HTML:
    """Buttons that put a task's token before the question, and a picture on which to draw a box for it."""
    with gr.Row(elem_id="tasks"):
        for task in tasks:
            button = gr.Button(f"[{task}]", size="sm", min_width=80)
            # in the browser: words that are typed while a server answers would be lost
            button.click(None, message, message, js=_with_task(task), api_visibility="private")
    with gr.Accordion("Draw a box on the picture, and ask what is in it", open=True):
        html, css, js = ((_PICKER / f"box_picker.{kind}").read_text() for kind in ("html", "css", "js"))
        picker = gr.HTML(html_template=html, css_template=css, js_on_load=js, picture="", elem_id="box")
    return picker


def _with_task(task: str) -> str:
    """`in_task` in JavaScript."""
    tokens = rf"^\s*\[({'|'.join(TASKS)})\]\s*"
    return f'(message) => [{{...message, text: "[{task}] " + message.text.replace(/{tokens}/, "")}}]'


def first_screen(examples: list[Path]) -> str:
    """What stands where the conversation will be."""
    how = "Drop, paste or attach pictures or a video, then ask about them."
    if not examples:
        return how
    picture = f'<img src="{example_url(*examples[:1])}" alt="an example">'
    return f"{picture}<br>Ask one of the questions below about this picture. Or: {how}"


@dataclass(frozen=True)
class Start:
    """What is asked about before the visitor has shown anything: an example, if there is one."""

    questions: list[str]
    examples: list[Path]

    def _with_picture(self, message: Message, visitor: Visitor | None, text: str) -> Message:
        bare = not message["files"] and not (visitor and visitor.chat.pictures)
        return {"text": text, "files": [str(file) for file in self.examples] if bare else message["files"]}

    def question(self, chosen: int, message: Message, visitor: Visitor | None) -> Message:
        return self._with_picture(message, visitor, self.questions[chosen])

    def box(self, message: Message, visitor: Visitor | None, event: gr.EventData) -> Message:
        """A box that was drawn takes the place of one in the question; else it is what is to be identified."""
        box = str(event.box)
        text, count = re.subn(r"\{(<\d{1,3}>){4}\}", box, message["text"])
        return self._with_picture(message, visitor, text if count else in_task("identify", box))

    def picture_to_draw_on(self, message: Message, visitor: Visitor | None, shown: str) -> tuple[Any, str]:
        """The last picture of the message, else of the conversation, else the example.

        It is sent only where it is another than what is `shown`: a box that was drawn stays while words are typed.
        """
        files = [file for file in message["files"] if not str(mimetypes.guess_type(file)[0]).startswith("video/")]
        file = files[-1] if files else visitor.view.picture(visitor.chat.turns) if visitor else ""
        example = not file or any(cmp(file, own, shallow=False) for own in self.examples if own.name == Path(file).name)
        picture = example_url(*self.examples) if example else f"gradio_api/file={quote(file)}"
        return gr.skip() if picture == shown else gr.HTML(picture=picture), picture


@cache
def example_url(*examples: Path) -> str:
    """A `data:` URL of the first example; "" without one."""
    return thumbnail_url(Image.open(examples[0]).convert("RGB"), _FIRST_PICTURE) if examples else ""
