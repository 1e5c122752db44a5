"""MiniGPT-4 made practical: a frozen vision tower, a trained projection, a frozen LLM.

Talk with a model about a picture, in three lines:

    import minigpt4
    chat = minigpt4.Chat(minigpt4.load_model())  # the bundled tiny model; or "output/my_run/checkpoint_best"
    print(chat.answer([PIL.Image.open("picture.jpg"), "What is this?"]))

Importing this loads nothing; what takes long is loaded when it is used.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt4.config.loading import load_config
    from minigpt4.config.schema import Config
    from minigpt4.inference.chat import Chat
    from minigpt4.inference.engine import Engine

__all__ = ["Chat", "load_config", "load_model"]

_PLACES = {"Chat": "minigpt4.inference.chat", "load_config": "minigpt4.config.loading"}


def load_model(model: "str | Path | Config" = "minigpt4_tiny_eval", options: Sequence[str] = ()) -> "Engine":
    """A model that is ready to answer, on its device.

    Args:
        model: a checkpoint folder that training wrote; a config's file, or the name of one that comes along; or a
            `Config`, as `load_config` returns it.
        options: `key=value` pairs that override the config's, e.g. `run.device=cpu`; not of a `Config`.

    Returns:
        An engine, as `Chat` takes it; see `Engine` for more that it can do.

    Raises:
        UserError: a file is missing or does not fit; all problems are reported at once.
    """
    from minigpt4.common.errors import UserError
    from minigpt4.config.loading import load_model_config
    from minigpt4.config.names import check_names
    from minigpt4.inference.loading import load_engine

    if isinstance(model, str | Path):
        config = load_model_config(model, list(options))
    elif options:
        raise UserError(f"options: {list(options)} override keys of a file. Change the Config instead.")
    else:
        config = model
    check_names(config)
    return load_engine(config)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)
