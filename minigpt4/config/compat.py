"""Other projects' spellings of our config keys and names, translated in each YAML layer before it is checked."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from minigpt4.common.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))  # which says what each is
NAMES: dict[str, dict[str, str]] = _TABLES["names"]
TYPES: dict[str, str] = _TABLES["types"]
KEYS: dict[str, str] = _TABLES["keys"]
FIXED: dict[str, list[Any]] = _TABLES["fixed"]
UNUSED: list[str] = _TABLES["unused"]
WITHOUT_EFFECT: dict[str, list[str]] = _TABLES["without_effect"]


def translate(source: str, layer: dict[str, Any]) -> dict[str, Any]:
    """Rewrites one YAML layer (plain containers) in our spelling.

    Raises:
        UserError: a key of `FIXED` has a value that cannot be had, two keys contradict each other, or DeepSpeed's
            settings hold a key that is not known.
    """
    _check_deepspeed(source, layer)
    arch = _get(layer, "model.arch")
    if isinstance(arch, str) and arch in TYPES:
        layer["model"].setdefault("model_type", TYPES[arch])
    if _get(layer, "run.runner") == "deepspeed_runner" and _get(layer, "run.strategy") is None:
        _set(layer, "run.strategy", "deepspeed")
    get_lora = _get(layer, "model.get_lora")
    for key in UNUSED:
        for group, name in _places(layer, key):
            del group[name]
    for key, names in NAMES.items():
        for group, name in _places(layer, key):
            group[name] = names.get(group[name], group[name]) if isinstance(group[name], str) else group[name]
    origin: dict[str, str] = {}
    for key, ours in _named(layer, KEYS):
        value, own = _pop(layer, key), _get(layer, ours)
        if value in (None, ""):
            continue
        if own not in (None, "", {}, value):
            raise UserError(f"{source}: {key}: {value}, but {origin.get(ours, ours)}: {own}. Remove one of them.")
        _set(layer, ours, value)
        origin.setdefault(ours, key)
    for group, name in _places(layer, "datasets.*.build_info.annotations"):
        del group[name]  # what is left says where to download them, and names other splits
    for key, legal in FIXED.items():
        value = _pop(layer, key, legal[0])
        if value not in legal:
            cure = "Remove it." if legal[0] is None else f"Set it to {legal[0]} or remove it."
            raise UserError(f"{source}: {key}: {value} is not supported. {cure}")
    if get_lora is not None and not get_lora:
        layer["model"]["lora_r"] = 0
    elif get_lora and not _get(layer, "model.lora_r"):  # the original's default could hide the rank of a lower layer
        raise UserError(
            f"{source}: model.get_lora: True, but no model.lora_r. Set it too, the original's default is 8."
        )
    _pop(layer, "run.deepspeed_config")
    return layer


def _named(layer: dict[str, Any], keys: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of keys, in which * becomes the name of each data set of the layer."""
    data = layer.get("datasets")
    for theirs, ours in keys.items():
        for name in (list(data) if isinstance(data, dict) else []) if "*" in theirs else [""]:
            yield theirs.replace("*", str(name)), ours.replace("*", str(name))


def _check_deepspeed(source: str, layer: dict[str, Any]) -> None:
    """Refuses DeepSpeed's settings that are not known, and says which are without effect."""
    place = "run.deepspeed_config"
    idle = [f"{group}.{name}" for group, names in WITHOUT_EFFECT.items() for name in names]
    _check_keys(source, place, _get(layer, place), [*KEYS, *FIXED, *idle])
    if found := [key.removeprefix(f"{place}.") for key in idle if _get(layer, key) is not None]:
        logger.warning("%s: %s: without effect here: %s", source, place, ", ".join(found))


def _check_keys(source: str, place: str, node: Any, known: list[str]) -> None:
    """Refuses what a group holds but for the known keys, all of them in full."""
    names = dict.fromkeys(k.removeprefix(f"{place}.").split(".")[0] for k in known if k.startswith(f"{place}."))
    if not names or node is None:
        return
    if not isinstance(node, dict):
        raise UserError(f"{source}: {place}: expected keys and values below it, found '{node}'.")
    for name, value in node.items():
        if name not in names:
            raise UserError(f"{source}: {place}.{name}: not known here.{did_you_mean(str(name), names)}")
        _check_keys(source, f"{place}.{name}", value, known)


def _places(node: Any, key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(group, name in it) of what stands at a dotted key, in which * stands for any name."""
    head, _, rest = key.partition(".")
    for name in [name for name in node if head in ("*", name)] if isinstance(node, dict) else []:
        if rest:
            yield from _places(node[name], rest)
        else:
            yield node, name


def _get(layer: dict[str, Any], key: str) -> Any:
    return next((group[name] for group, name in _places(layer, key)), None)


def _pop(layer: dict[str, Any], key: str, default: Any = None) -> Any:
    return next((group.pop(name) for group, name in _places(layer, key)), default)


def _set(layer: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        layer = layer.setdefault(part, {})
    layer[last] = value
