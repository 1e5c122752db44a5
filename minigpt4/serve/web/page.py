"""The page: what is where, and which event does what."""

import os
from pathlib import Path
from typing import Any

import gradio as gr
import yaml
from gradio_client.utils import is_http_url_like

from minigpt4.common.paths import ASSETS
from minigpt4.config.schema import ModelConfig
from minigpt4.inference.options import AnswerOptions
from minigpt4.serve.web.controls import BEAMS, GREEDY, LABELS, MODES, SAMPLE
from minigpt4.serve.web.handlers import Handlers
from minigpt4.serve.web.start import Start, first_screen, task_side
from minigpt4.serve.web.visitor import Message

THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # nothing to download
    font_mono=["ui-monospace", "monospace"],
)
KEPT = 4 * 3600  # seconds for which the conversation of a visitor who does nothing is kept
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # events that are no API
_DOWNLOAD = "() => setTimeout(() => document.querySelector('#saved').click(), 100)"


class _Page(gr.Blocks):
    """A page whose visitors upload their files: gradio would download one that is named by its address, of any size."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        _refuse_addresses(inputs)
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)


def _refuse_addresses(value: Any) -> None:
    """Anywhere in what a visitor sends: gradio takes for a file what it finds below other things, too."""
    if isinstance(value, dict):
        if is_http_url_like(value.get("path")):
            raise gr.Error("A file was named by its address. Download it, then upload it here.", print_exception=False)
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        _refuse_addresses(part)


def build_page(handlers: Handlers, examples: list[Path], model: ModelConfig | None = None) -> gr.Blocks:
    """Builds the page.

    Its events are also an API for `gradio_client`: `/ask`, `/edit`, `/regenerate`, `/undo`, `/restart` and `/load` give
    the chat's messages, the message box and the status line; `/stop` nothing; `/save` a file.

    Args:
        examples: picture files that a click adds to the message.
        model: what the visitors talk with.
    """
    model, guides = model or ModelConfig(), yaml.safe_load((ASSETS / "guides.yaml").read_text())
    guide = guides.get(model.model_type) or guides.get(model.arch) or guides["any"]  # what visitors read about it
    gr.set_static_paths(list(map(str, examples)))  # else a page that was started in another folder can't show them
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # some of gradio's telemetry looks only here
    with _Page(title="MiniGPT-4", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as page:
        visitor = gr.State(time_to_live=KEPT)  # made at the first event: an initial value would be deep-copied
        gr.Markdown(f"# MiniGPT-4\n{guide['about']}")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                chat, message, status, questions = _chat_side(guide["questions"], examples)
                if "tasks" in guide:
                    task_side(guide["tasks"], message, examples)
            with gr.Column(scale=1, min_width=320):
                with gr.Row():
                    restart = gr.Button("Restart", size="sm", min_width=80)
                    save = gr.Button("Save", size="sm", min_width=80)
                    load = gr.UploadButton("Load", size="sm", min_width=80, file_types=[".json"])
                saved = gr.DownloadButton(visible="hidden", elem_id="saved")
                _picture_side(examples, message)
                options = _options()

        shown = [chat, message, status, visitor]
        unseen: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
        # answers have a line of their own; on the chat, an error would cover what was said
        seen: dict[str, Any] = {"concurrency_limit": None, "show_progress_on": status}
        asks = {"fn": handlers.ask, "inputs": [message, *options, visitor], "outputs": shown, **seen}
        message.submit(api_name="ask", **asks)
        start = Start(guide["questions"], examples[:1], handlers)
        chosen = questions.click(start.question, [questions, message, visitor], message, **_PRIVATE)
        chosen.success(api_visibility="private", **{**asks, "fn": start.ask})
        chat.retry(handlers.regenerate, [*options, visitor], shown, api_name="regenerate", **seen)
        index, words = gr.Number(visible=False), gr.Textbox(visible=False)
        edited = chat.edit(_edited, None, [index, words], api_visibility="private", **unseen)
        edited.success(handlers.edit, [index, words, *options, visitor], shown, api_name="edit", **seen)
        message.stop(handlers.stop, visitor, None, api_name="stop", **unseen)
        chat.undo(handlers.undo, visitor, shown, api_name="undo", **seen)
        gr.on([restart.click, chat.clear], handlers.restart, visitor, shown, api_name="restart", **seen)
        save.click(handlers.save, visitor, saved, api_name="save", **unseen).success(None, js=_DOWNLOAD)
        load.upload(handlers.load, [load, visitor], shown, api_name="load", **seen)
    return page


def _chat_side(
    starters: list[str], examples: list[Path]
) -> tuple[gr.Chatbot, gr.MultimodalTextbox, gr.Markdown, gr.Dataset]:
    chat = gr.Chatbot(
        show_label=False,
        elem_id="chat",
        buttons=[],
        editable="user",
        group_consecutive_messages=False,  # gradio cannot edit words in one bubble with a picture
        render_markdown=False,  # the answers are rendered already, with no HTML of theirs
        latex_delimiters=[],
        placeholder=first_screen(examples),
    )
    status = gr.Markdown(elem_id="status", container=False)
    message = gr.MultimodalTextbox(
        show_label=False,
        placeholder="Ask about a picture",
        file_count="multiple",
        file_types=["image", "video"],
        max_plain_text_length=1_000_000,  # longer pasted text would become a file
        autofocus=True,
        elem_id="message",
    )
    questions = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[[question] for question in starters],
        label="Ask one of these",
        type="index",
    )
    return chat, message, status, questions


def _picture_side(examples: list[Path], message: gr.MultimodalTextbox) -> None:
    if examples:
        pictures = gr.Dataset(
            components=[gr.Image(visible=False)],
            samples=[[str(file)] for file in examples],
            label="Pictures to try",
            type="index",
            elem_id="examples",
        )
        pictures.click(
            lambda chosen, old: _with_file(old, str(examples[chosen])), [pictures, message], message, **_PRIVATE
        )
    with gr.Accordion("Take a picture", open=False):
        # image_mode: gradio would decode a file of another mode, whatever its size
        camera = gr.Image(
            sources=["webcam"], type="filepath", image_mode=None, show_label=False, height=240, elem_id="camera"
        )
    camera.input(
        lambda photo, old: (None, _with_file(old, photo) if photo else old),
        [camera, message],
        [camera, message],
        **_PRIVATE,
    )


def _options() -> list[Any]:
    """The controls whose values `decoding` takes, in its order."""
    default = AnswerOptions()

    def slider(name: str, low: float, high: float, step: float, **more: Any) -> gr.Slider:
        return gr.Slider(low, high, getattr(default, name), step=step, label=LABELS[name], **more)

    def number(name: str) -> gr.Number:
        return gr.Number(getattr(default, name), precision=0, label=LABELS[name], min_width=80)

    with gr.Accordion("How it answers", open=True):
        mode = gr.Radio(MODES, value=GREEDY, show_label=False, container=False, elem_id="mode")
        beams = gr.Slider(2, 10, 5, step=1, label=LABELS["num_beams"], visible=False)
        length_penalty = slider("length_penalty", -2, 2, 0.1, info="more: longer answers", visible=False)
        temperature = slider("temperature", 0.1, 2, 0.1, visible=False)
        top_p = slider("top_p", 0.05, 1, 0.05, visible=False)
        seed = gr.Number(-1, precision=0, label=LABELS["seed"], info="-1: a new one each time", visible=False)
        repetition = slider("repetition_penalty", 1, 2, 0.05, info="1: none")
        with gr.Row():
            shortest, longest = number("min_new_tokens"), number("max_new_tokens")
    controls = {beams: BEAMS, length_penalty: BEAMS, temperature: SAMPLE, top_p: SAMPLE, seed: SAMPLE}
    mode.change(
        lambda chosen: [gr.update(visible=chosen == of) for of in controls.values()], mode, list(controls), **_PRIVATE
    )
    return [mode, beams, temperature, top_p, repetition, length_penalty, shortest, longest, seed]


def _edited(event: gr.EditData) -> tuple[int, str]:
    return event.index if isinstance(event.index, int) else event.index[0], event.value


def _with_file(message: Message, file: str) -> Message:
    return {"text": message["text"], "files": [*message["files"], file]}
