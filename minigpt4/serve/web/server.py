"""The demo: a web page on which a visitor shows pictures and talks about them."""

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio import http_server
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4.common.errors import Problems
from minigpt4.common.limits import MAX_IMAGE_PIXELS, MAX_SESSIONS, MAX_UPLOAD_MB
from minigpt4.config.schema import Config
from minigpt4.inference.loading import load_engine
from minigpt4.inference.sessions import Sessions
from minigpt4.runners.log import setup_logger
from minigpt4.serve.address import bind, in_url, known_hosts
from minigpt4.serve.http import Server
from minigpt4.serve.middleware import BodyLimit, KnownHosts
from minigpt4.serve.web.page import ANY_MODEL, ASSETS, GUIDES, THEME, build_page
from minigpt4.serve.web.visitor import Handlers

logger = logging.getLogger(__name__)


class _NoRelay:
    """Middleware that answers 404 where gradio would fetch any public URL for whoever asks."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relayed = _RELAYED.search(scope.get("path", ""))
        await (Response(status_code=404) if relayed else self.app)(scope, receive, send)


_RELAYED = re.compile("/file[=/]https?://")  # by either of gradio's routes of files
_AROUND_FILES = 1_000_000  # bytes of an upload that are not its files
_VISITORS_PER_SESSION = 4  # whose conversations, with their pictures, are kept in main memory


def serve(
    config: Config,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    auth: list[tuple[str, str]] | None = None,
    max_sessions: int = MAX_SESSIONS,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    max_upload_mb: int = MAX_UPLOAD_MB,
    allowed_hosts: Collection[str] = (),
) -> None:
    """Loads the model of a config and serves the page until Ctrl-C.

    Args:
        allowed_hosts: see `known_hosts`.
        auth: users and passwords; None lets everybody in.
        max_sessions: see `Sessions`; the conversations of four times as many visitors are kept at all.

    Raises:
        UserError: a weight file or the address cannot be used.
    """
    setup_logger()
    problems = Problems()
    with problems.collect(), bind(host, port) as place:  # before the minutes that loading can take
        port = place.getsockname()[1]  # for 0, any, a free one
    sessions = Sessions(load_engine(config, problems), max_sessions, max_image_pixels)
    handlers = Handlers(sessions, max_upload_mb, config.preprocess.n_frms)
    kind = config.model.model_type
    examples = sorted((Path(config.env.package_dir) / "assets" / kind / "examples").glob("*.jpg"))
    page = build_page(handlers, examples, guide=GUIDES.get(kind) or GUIDES.get(config.model.arch) or ANY_MODEL)
    launch(page, host, port, share, auth, max_upload_mb, max_sessions, allowed_hosts)
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
    allowed_hosts: Collection[str] = (),
) -> None:
    """Serves a page in a background thread.

    Raises:
        UserError: the address can't be used.
    """
    place = bind(host, port)
    hosts = known_hosts(place, host, allowed_hosts)
    middleware = [
        Middleware(KnownHosts, hosts=hosts),
        Middleware(BodyLimit, max_bytes=max_upload_mb * 2**20 + _AROUND_FILES),  # as gradio counts
        Middleware(_NoRelay),
    ]
    with _serving_at(place):
        page.queue(default_concurrency_limit=None).launch(
            server_name=in_url(host),
            server_port=place.getsockname()[1],
            share=share,
            auth=auth,
            theme=THEME,
            css_paths=ASSETS / "page.css",
            head_paths=ASSETS / "page_head.html",
            footer_links=[],
            show_error=True,
            max_file_size=f"{max_upload_mb}mb",
            state_session_capacity=_VISITORS_PER_SESSION * max_sessions,
            app_kwargs={"middleware": middleware},
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    if page.share_url:
        hosts.add(str(urlsplit(page.share_url).hostname))


@contextmanager
def _serving_at(place: socket) -> Iterator[None]:
    """While a page is launched, has gradio start our server in place of its own, which has no limits.

    There is no argument for that. `gr.mount_gradio_app` would give an app for any server, but does without gradio's
    check of the files that a visitor names, and without `share`.
    """

    def start_server(app: ASGIApp, server_name: str, server_port: int, **_: Any) -> tuple[str, int, str, Server]:
        server = Server(app, place, log_level="warning")
        server.run_in_thread()
        reached = "localhost" if server_name == "0.0.0.0" else server_name
        return server_name, server_port, f"http://{reached}:{server_port}/", server

    original, http_server.start_server = http_server.start_server, start_server  # type: ignore[assignment]
    try:
        yield
    finally:
        http_server.start_server = original
