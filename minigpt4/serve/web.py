"""The demo: a web page on which a visitor shows pictures and talks about them."""

import logging
import re
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4.common.config import Config
from minigpt4.common.errors import Problems
from minigpt4.common.limits import MAX_IMAGE_PIXELS, MAX_SESSIONS, MAX_UPLOAD_MB
from minigpt4.common.logger import setup_logger
from minigpt4.conversation.session import Sessions
from minigpt4.serve.address import bind, in_url
from minigpt4.serve.loading import load_model
from minigpt4.serve.page import ANY_MODEL, CSS, HEAD, THEME, Guide, build_page
from minigpt4.serve.visitor import Handlers

logger = logging.getLogger(__name__)


class _NoRelay:
    """Middleware that answers 404 where gradio would fetch any public URL for whoever asks."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relayed = _RELAYED.search(scope.get("path", ""))
        await (Response(status_code=404) if relayed else self.app)(scope, receive, send)


_RELAYED = re.compile("/file[=/]https?://")  # by either of gradio's routes of files
_VISITORS_PER_SESSION = 4  # whose conversations, with their pictures, are kept in main memory

_GUIDES = {
    "tiny": Guide(
        "This tiny model knows one kind of picture: colored handwritten digits on a dark ground. Ask it which digits "
        "there are, how many, where, and in what color. About other pictures it makes things up.",
        ("Describe this image in detail.", "How many digits are there?", "Is there a yellow digit?"),
    ),
    "minigpt_v2": Guide(
        "Show a picture and ask about it. Where an answer names places in the picture, boxes show them. The model can "
        "be wrong, and sound sure of it.",
        (
            "[grounding] describe this image in detail",
            "[detection] people",
            "[refer] the largest object",
            "[vqa] What is unusual about this image?",
        ),
    ),
}


def serve(
    config: Config,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    auth: list[tuple[str, str]] | None = None,
    max_sessions: int = MAX_SESSIONS,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    max_upload_mb: int = MAX_UPLOAD_MB,
) -> None:
    """Loads the model of a config and serves the page until Ctrl-C.

    Args:
        auth: users and passwords; None lets everybody in.
        max_sessions: see `Sessions`; the conversations of four times as many visitors are kept at all.

    Raises:
        UserError: a weight file or the address cannot be used.
    """
    setup_logger()
    problems = Problems()
    with problems.collect(), bind(host, port) as place:  # before the minutes that loading can take
        port = place.getsockname()[1]  # for 0, any, a free one
    model, processor = load_model(config, problems)
    sessions = Sessions(model, processor, max_sessions, max_image_pixels)
    handlers = Handlers(sessions, max_upload_mb, config.preprocess.n_frms)
    kind = config.model.model_type
    examples = sorted((Path(config.env.package_dir) / "assets" / kind / "examples").glob("*.jpg"))
    page = build_page(handlers, examples, guide=_GUIDES.get(kind) or _GUIDES.get(config.model.arch) or ANY_MODEL)
    launch(page, host, port, share, auth, max_upload_mb, max_sessions)
    logger.info("The page is at %s (Ctrl-C ends it)", page.share_url or page.local_url)
    page.block_thread()


def launch(
    page: gr.Blocks,
    host: str,
    port: int,
    share: bool = False,
    auth: list[tuple[str, str]] | None = None,
    max_upload_mb: int = MAX_UPLOAD_MB,
    max_sessions: int = MAX_SESSIONS,
) -> None:
    """Serves a page in a background thread."""
    page.queue(default_concurrency_limit=None).launch(
        server_name=in_url(host),
        server_port=port,
        share=share,
        auth=auth,
        theme=THEME,
        css=CSS,
        head=HEAD,
        footer_links=[],
        show_error=True,
        max_file_size=f"{max_upload_mb}mb",
        state_session_capacity=_VISITORS_PER_SESSION * max_sessions,
        app_kwargs={"middleware": [Middleware(_NoRelay)]},
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
