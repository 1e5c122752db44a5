"""The API on a free port, and those who ask it."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket

from openai import OpenAI
from PIL import Image
from starlette.types import ASGIApp

from minigpt4.serve.address import bind, known_hosts
from minigpt4.serve.api.routes import build_app
from minigpt4.serve.api.service import Service
from minigpt4.serve.http import Server
from tests.waiting import LIMIT

SCENES = sorted((Path(__file__).parents[2] / "minigpt4/assets/tiny/examples").glob("*.jpg"))
NAME = "tiny"


@contextmanager
def running(service: Service, api_key: str = "") -> Iterator[str]:
    """Serves in a thread; gives the address."""
    place = bind("127.0.0.1", 0)
    with serving(build_app(service, api_key, known_hosts(place, "127.0.0.1")), place) as url:
        yield url


@contextmanager
def serving(app: ASGIApp, place: socket) -> Iterator[str]:
    """Serves any app, as `running`."""
    server = Server(app, place, log_level="critical")
    server.run_in_thread()
    server.config.timeout_graceful_shutdown = 1
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        server.close()


def client_of(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=LIMIT)


def data_url(picture: Path | Image.Image) -> str:
    if isinstance(picture, Path):
        data = picture.read_bytes()
    else:
        file = io.BytesIO()
        picture.save(file, "png")
        data = file.getvalue()
    return f"data:image/any;base64,{base64.b64encode(data).decode()}"


def image_part(picture: Path | Image.Image | str) -> dict:
    url = picture if isinstance(picture, str) else data_url(picture)
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: str | Path | Image.Image) -> dict:
    """A user's message."""
    written = [{"type": "text", "text": part} if isinstance(part, str) else image_part(part) for part in parts]
    return {"role": "user", "content": written}
