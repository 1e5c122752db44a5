"""Weights that others published: where they come from, where they lie on this machine. Nothing here is downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.config.schema import EnvConfig

_DRIVE = "https://drive.google.com/file/d/"


@dataclass(frozen=True)
class Weights:
    """A file at URLs that hold the same, or a repository of the Hugging Face hub.

    Attributes:
        file: its name on this machine; of a repository empty.
        size: in bytes; None where no page says it.
        sha256: {file name: digest in hexadecimal} of those that are known.
    """

    name: str
    what: str = ""
    license: str = "see its page"
    hub: str = ""
    file: str = ""
    urls: tuple[str, ...] = ()
    size: int | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return f"https://huggingface.co/{self.hub}" if self.hub else self.urls[0]


@dataclass(frozen=True)
class Model:
    """Weights that make a model together: {config key: their name}, and the command that uses them."""

    name: str
    what: str
    needs: Mapping[str, str]
    runs: str
    options: tuple[str, ...] = ()


@lru_cache
def _table() -> Any:
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def published_weights() -> dict[str, Weights]:
    """All that are known, by their names."""
    rows = _table()["weights"]
    return {name: Weights(name, **{**row, "urls": tuple(row.get("urls", ()))}) for name, row in rows.items()}


def published_models() -> dict[str, Model]:
    """All that are known, by their names."""
    rows = _table()["models"]
    return {name: Model(name, **{**row, "options": tuple(row.get("options", ()))}) for name, row in rows.items()}


def find_weights(name: str) -> Weights:
    """The weights of a name, a URL or a hub id; of the last two, known or not.

    Raises:
        UserError: it is none of them, or a URL without a file's name.
    """
    known = published_weights()
    for weights in known.values():
        if name in (weights.name, weights.hub, *weights.urls):
            return weights
    if is_url(name):
        if not (file := Path(urlparse(name).path).name):
            raise UserError(f"'{name}' names no file. Set it to the URL of a file.")
        return Weights(name, file=file, urls=(name,))
    if name.count("/") == 1 and not name.startswith(("/", ".", "~")):
        return Weights(name, hub=name)
    models = published_models()
    raise UserError(f"fetch: '{name}' is unknown, and no hub id or URL.{did_you_mean(name, [*models, *known])}")


def is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def cached_file(url: str, cache_root: str) -> Path:
    """Where `minigpt4 fetch` puts the file of a URL, whether it is there or not."""
    root, known = Path(cache_root).expanduser(), find_weights(url)
    if known.urls[0].startswith(_DRIVE):  # whose URLs name no file
        return root / "drive" / known.file
    return root / "/".join(part for part in urlparse(known.urls[0]).path.split("/") if part not in ("", ".."))


def fetch_command(value: str, cache_root: str = EnvConfig.cache_root) -> str:
    """The command that gets what a config names, a URL or a hub id."""
    known = find_weights(value).name
    other = "" if Path(cache_root).expanduser() == Path(EnvConfig.cache_root).expanduser() else f" --cache {cache_root}"
    return f"minigpt4 fetch {known} --download{other}"
