"""The API on a free port, and those who ask it."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from openai import OpenAI
from PIL import Image

from minigpt4.common.config import load_config
from minigpt4.common.registry import registry
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors import build_processor
from minigpt4.serve.api import build_app
from minigpt4.serve.command import bind
from minigpt4.serve.service import Limits, Service

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
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


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


@pytest.fixture(scope="session")
def tiny() -> tuple[MiniGPT4, object]:
    """The bundled model and its processor."""
    config = load_config("eval_configs/minigpt4_tiny_eval.yaml", [])
    model = registry.get_model_class(config.model.arch).from_config(config).eval()
    return model, build_processor(config.preprocess.vis_processor.eval)


@pytest.fixture(scope="module")
def service(tiny) -> Service:
    return Service(*tiny, NAME, Limits(max_image_pixels=1_000_000, max_body_mb=2))


@pytest.fixture(scope="module")
def url(service) -> Iterator[str]:
    with running(service) as address:
        yield address


@pytest.fixture
def client(url) -> OpenAI:
    return client_of(url)
