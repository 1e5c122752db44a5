"""The demo: a web page on which a visitor shows a picture and talks about it."""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps
from torch import Tensor

from minigpt4.common.config import Config
from minigpt4.common.dist_utils import pick_device
from minigpt4.common.errors import Problems, UserError
from minigpt4.common.logger import setup_logger
from minigpt4.common.registry import registry
from minigpt4.conversation.chat import Chat, RestartedError
from minigpt4.conversation.conversation import IMAGE
from minigpt4.models.minigpt_base import MiniGPTBase
from minigpt4.processors import build_processor

logger = logging.getLogger(__name__)

Processor = Callable[[Image.Image], Tensor]
History = list[dict[str, str]]

_ANSWERS_AT_ONCE = 2  # further visitors wait in gradio's queue
_THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # nothing to download
    font_mono=["ui-monospace", "monospace"],
)
_CSS = """
#picture img { width: 100%; height: 100%; object-fit: contain }  /* a small picture fills its panel too */
#examples .gallery-item * { width: 72px; height: 72px }  /* four in a row on a phone */
"""


@dataclass(frozen=True)
class Guide:
    """What the page tells a visitor about the loaded model."""

    about: str
    questions: tuple[str, ...]


_GUIDES = {
    "tiny": Guide(
        "This tiny model knows one kind of picture: colored handwritten digits on a dark ground. Ask it which digits "
        "there are, how many, where, and in what color. About other pictures it makes things up.",
        ("Describe this image in detail.", "How many digits are there?", "Is there a yellow digit?"),
    ),
}
_ANY_MODEL = Guide(
    "Show a picture and ask about it, in several turns if you like. The model can be wrong, and sound sure of it.",
    ("Describe this image in detail.", "What is unusual about this image?", "Write a poem about this image."),
)


def serve(config: Config, host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> None:
    """Loads the model of a config and serves the page until Ctrl-C.

    Raises:
        UserError: a weight file or the address cannot be used.
    """
    setup_logger()
    problems = Problems()
    with problems.collect():
        _check_address(host, port)  # before the minutes that loading can take
    model = registry.get_model_class(config.model.arch).from_config(config, problems=problems)
    model = model.place(pick_device(config.run.device)).eval()
    processor = build_processor(config.preprocess.vis_processor.eval)
    name = config.model.model_type
    examples = sorted((Path(config.env.package_dir) / "assets" / name / "examples").glob("*.jpg"))
    page = build_page(model, processor, examples, guide=_GUIDES.get(name, _ANY_MODEL))
    launch(page, host, port, share)
    logger.info("The page is at %s (Ctrl-C ends it)", page.share_url or page.local_url)
    page.block_thread()


def launch(page: gr.Blocks, host: str, port: int, share: bool = False) -> None:
    """Serves a page in a background thread."""
    page.queue(default_concurrency_limit=_ANSWERS_AT_ONCE).launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=_THEME,
        css=_CSS,
        footer_links=[],
        show_error=True,
        max_file_size="20mb",
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )


def _check_address(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise UserError(f"--host {host} --port {port}: {reason}. Choose another, for example --port 7861.") from None


def build_page(
    model: MiniGPTBase,
    processor: Processor,
    examples: list[Path],
    title: str = "MiniGPT-4",
    guide: Guide = _ANY_MODEL,
) -> gr.Blocks:
    """Builds the page around a model in eval mode.

    Its events are also an API for `gradio_client`: `/upload` (picture), `/ask` (question, beams, temperature,
    max_new_tokens; streams) and `/restart`.

    Args:
        processor: the model's eval processor, PIL image -> [3, H, W].
        examples: picture files that a click shows to the model.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # some of gradio's telemetry looks only here
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        session = gr.State()  # a Chat, made at a visitor's first picture: an initial value would be deep-copied
        gr.Markdown(f"# {title}\n{guide.about}")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                picture, options = _picture_side(examples)
            with gr.Column(scale=3, min_width=300):
                chatbot, question, send, restart = _chat_side(guide)

        gr.on(
            [send.click, question.submit],
            _ask,
            [question, *options, session],
            [chatbot, question],
            api_name="ask",
            concurrency_limit=_ANSWERS_AT_ONCE,
            show_progress="hidden",
            show_progress_on=send,  # on the chat, an error would cover what was said
        )
        picture.change(
            partial(_show, model, processor),
            [picture, session],
            [chatbot, session],
            api_name="upload",
            show_progress_on=picture,
            preprocess=False,  # gradio has checked the path; what cannot be read is ours to say in words
        ).then(_view, session, [chatbot, question, send], api_visibility="private", concurrency_limit=None)
        gr.on(
            [restart.click, chatbot.clear],
            _restart,
            session,
            [chatbot, picture],
            api_name="restart",
            concurrency_limit=None,
        )
        page.load(_view, session, [chatbot, question, send], api_visibility="private", concurrency_limit=None)
    return page


def _picture_side(examples: list[Path]) -> tuple[gr.Image, list[gr.Slider]]:
    picture = gr.Image(sources=["upload", "clipboard", "webcam"], show_label=False, height=320, elem_id="picture")
    if examples:
        gr.Examples([[str(file)] for file in examples], picture, label="Or try one of these", elem_id="examples")
    with gr.Accordion("How it answers", open=False):
        beams = gr.Slider(1, 5, 1, step=1, label="Beams", info="more than 1: the answer comes in one piece")
        temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0: always the likeliest word")
        length = gr.Slider(1, 1000, 300, step=1, label="Longest answer", info="in tokens, parts of words")
    return picture, [beams, temperature, length]


def _chat_side(guide: Guide) -> tuple[gr.Chatbot, gr.Textbox, gr.Button, gr.Button]:
    hint = "Show a picture, then ask about it."
    chatbot = gr.Chatbot(
        show_label=False, height=440, buttons=[], render_markdown=False, latex_delimiters=[], placeholder=hint
    )
    with gr.Row():
        question = gr.Textbox(
            show_label=False, scale=8, min_width=180, container=False, autofocus=True, elem_id="question"
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=80)
    gr.Examples([[text] for text in guide.questions], question, label="Questions to start with")
    restart = gr.Button("Restart", variant="secondary", size="sm")
    return chatbot, question, send, restart


def _show(
    model: MiniGPTBase, processor: Processor, upload: dict[str, Any] | None, chat: Chat | None
) -> tuple[History, Chat]:
    """Begins a conversation about a picture, given as gradio's record of a stored file; None only ends the old one."""
    chat = chat or Chat(model, processor)
    if chat.turns and upload is not None:
        gr.Info("A new picture starts a new conversation.")
    chat.restart()
    if upload is not None:
        picture = _open(Path(upload["path"]))
        with _failure_in_words():
            chat.upload_img(picture)
    return [], chat


def _open(file: Path) -> Image.Image:
    """Reads a picture the way up that its camera meant."""
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow's readers raise many kinds
        logger.warning("unreadable upload: %s", error)
        words = "This file cannot be read as a picture. Try a JPEG or PNG."
        raise gr.Error(words, print_exception=False) from None


def _ask(
    question: str, beams: float, temperature: float, max_new_tokens: float, chat: Chat | None
) -> Iterator[tuple[History, Any]]:
    """Streams the conversation with the growing answer, and what is left in the question box."""
    if chat is None or not chat.images:
        raise gr.Error("Show a picture first, then ask about it.", print_exception=False)
    if not question.strip():
        raise gr.Error("The question is empty. Type one first.", print_exception=False)
    before = _history(chat)
    asked = [*before, _message("user", question)]
    yield [*asked, _message("assistant", "…")], ""
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    answers = chat.stream(question, num_beams=int(beams), max_new_tokens=int(max_new_tokens), **sampling)
    forgotten = chat.forgotten
    with _failure_in_words():
        try:
            for answer in answers:
                yield [*asked, _message("assistant", answer)], ""
            if chat.forgotten > forgotten:
                gr.Info(f"The conversation is long: the model no longer reads its first {chat.forgotten} questions.")
        except RestartedError:
            yield _history(chat), gr.skip()  # gradio shows the last value once more: it must not be the old history
        except Exception:
            yield before, question  # back into the box
            raise


def _restart(chat: Chat | None) -> tuple[History, None]:
    """Ends the conversation and takes the picture away."""
    if chat is not None:
        chat.restart()
    return [], None


def _view(chat: Chat | None) -> tuple[History, Any, Any]:
    """What the page shows of a session: its history, and whether there is a picture to ask about."""
    ready = chat is not None and bool(chat.images)
    hint = "Ask about the picture" if ready else "Show a picture first"
    history = _history(chat) if chat is not None else []
    return history, gr.update(interactive=ready, placeholder=hint), gr.update(interactive=ready)


def _history(chat: Chat) -> History:
    history = []
    for turn in chat.turns:
        history.append(_message("user", turn.question.replace(IMAGE, "").lstrip()))
        if turn.answer is not None:
            history.append(_message("assistant", turn.answer))
    return history


def _message(role: str, text: str) -> dict[str, str]:
    # the chat would show a tag as HTML, and load what it names
    text = re.sub("<(?=[a-zA-Z/!?])", "&lt;", text)
    return {"role": role, "content": text or "(The model ended its answer without a word.)"}


@contextmanager
def _failure_in_words() -> Iterator[None]:
    """Turns exceptions into messages on the page; what is not the visitor's doing is logged with its traceback."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        logger.exception("the model failed")
        words = str(error).partition("\n")[0]
        raise gr.Error(f"The model failed: {type(error).__name__}: {words}", print_exception=False) from error
