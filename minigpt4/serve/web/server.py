"""The server of the page: gradio's app behind our limits."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from socket import socket
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio import http_server
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4.common.limits import MAX_SESSIONS, MAX_UPLOAD_MB
from minigpt4.serve.address import in_url, known_hosts
from minigpt4.serve.http import Server
from minigpt4.serve.middleware import BodyLimit, KnownHosts
from minigpt4.serve.web.page import ASSETS, THEME


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


def launch(
    page: gr.Blocks,
    place: socket,
    host: str,
    share: bool = False,
    auth: list[tuple[str, str]] | None = None,
    max_upload_mb: int = MAX_UPLOAD_MB,
    max_sessions: int = MAX_SESSIONS,
    allowed_hosts: Collection[str] = (),
) -> None:
    """Serves a page in a background thread.

    Args:
        place: where it listens, see `bind`.
        host, allowed_hosts: see `known_hosts`.
        auth: users and passwords; None lets everybody in.
        max_sessions: see `Sessions`; the conversations of four times as many visitors are kept at all.
    """
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
