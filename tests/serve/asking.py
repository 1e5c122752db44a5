"""The API on a free port, and those who ask it."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from openai import OpenAI
from PIL import Image

from minigpt4.serve.address import bind
from minigpt4.serve.api import build_app
from minigpt4.serve.service import Service
from tests.waiting import LIMIT

SCENES = sorted((Path(__file__).parents[2] / "minigpt4/assets/tiny/examples").glob("*.jpg"))
NAME = "tiny"


@contextmanager
def running(service: Service, api_key: str = "") -> Iterator[str]:
    """Serves in a thread; gives the address."""
    place = bind("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(build_app(service, api_key), log_level="critical", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        place.close()


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
