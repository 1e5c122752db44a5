"""Text as a config layer: YAML files and `key=value` options, whatever they hold; and errors about them as one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.config.schema import Config

_MOST_BYTES = 2**18  # of a file
_DEEPEST = 50  # groups and lists within one another: PyYAML's C code crashes on some thousands
_MOST_DIGITS = 100
_NUMBER = re.compile(r"[-+]?([0-9_:]+|0[bx][0-9a-fA-F_]+)")
_LONGEST_MESSAGE = 500
_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))
# an item with ${...} in a list, which YAML reads only in quotes
_IN_LIST = re.compile(r"(?<=[\[, ])[^\s\[\],\"']*\$\{[^{}]*\}[^\s\[\],\"']*")


def read_yaml(path: Path) -> DictConfig:
    """Reads a YAML file of groups.

    Raises:
        UserError: it can't be read, is too large, or not such a file.
    """
    with readable_errors(f"{path} is not valid YAML"):
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES} bytes. Set --cfg-path to the file of a run")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8 text. Name a YAML file, or the folder of a checkpoint") from None
        _check_text(text)
        content = OmegaConf.load(path)
    if not isinstance(content, DictConfig):
        raise UserError(f"{path}: expected groups such as model:, datasets: and run:, found a list.")
    return content


def read_options(options: list[str]) -> DictConfig:
    """Reads `key=value` pairs, or the original's `key value ...`.

    Raises:
        UserError: a value is missing, or is not valid YAML.
    """
    if options and "=" not in options[0]:
        if len(options) % 2:
            raise UserError(f"--options: '{options[-1]}' has no value. Write key=value, for example run.max_epoch=2.")
        options = [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=True)]
    layer = OmegaConf.create()
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--options: '{option}' has no value. Write key=value, for example run.max_epoch=2.")
        with readable_errors("--options", key):
            value = _IN_LIST.sub(r'"\g<0>"', value) if value.startswith("[") else value
            try:
                _check_text(value)
            except yaml.YAMLError as error:
                raise ValueError(f"{one_line(error)}. Put such text in quotes: \"{key}='...'\"") from None
            layer.merge_with_dotlist([f"{key}={value}"])
    return layer


def _check_text(text: str) -> None:
    """Refuses what is legal YAML and of no use in a config. Aliases are limited by OmegaConf."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"line {event.start_mark.line + 1}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"{line}: more than {_DEEPEST} groups or lists within one another")
        if (tag := getattr(event, "tag", None)) not in (None, "!", *_TAGS):
            raise ValueError(f"{line}: the tag '{tag}' has no meaning here. Remove it")
        value = getattr(event, "value", "")
        if len(value) > _MOST_DIGITS and _NUMBER.fullmatch(value):
            raise ValueError(f"{line}: a number of {len(value)} digits")


@contextmanager
def readable_errors(source: str, key: str = "") -> Iterator[None]:
    """Around PyYAML and OmegaConf, which raise many kinds of errors: each becomes one line with the source and key."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = one_line(error)
        own = f"{key}: " if key and not message.startswith(f"{key}:") else ""
        raise UserError(f"{source}: {own}{message}") from None


def shortened(message: str) -> str:
    """A message as one line of a length to be read, whatever the values that it quotes."""
    line = " ".join(message.splitlines())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 100]} ... {line[-90:]}"


def one_line(error: Exception) -> str:
    """The full key and what is wrong with it, without the lines about internal object types."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    detail = [line for line in lines[1:] if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    message = " ".join(lines[:1] + detail)
    if match := re.search(r"Invalid value '(.*)', expected one of (\[.*\])", message):  # of a Literal
        names = [name.strip(" '") for name in match[2].strip("[]").split(",")]
        message = f"'{match[1]}' is unknown.{did_you_mean(match[1], names)}"
    elif isinstance(error, ConfigKeyError) and (place := _places().get(error.key)):
        message = f"unknown key. Did you mean '{place}'?"
    elif isinstance(error, ConfigKeyError) and is_dataclass(group := error.object_type):
        message = f"unknown key.{did_you_mean(str(error.key), [key.name for key in fields(group)])}"
    elif match := re.search(r"length (\d+) does not match type hint length (\d+)", message):
        message = f"expected {match[2]} values, found {match[1]}"
    elif match := re.search(r"(?s)Invalid type assigned: .* is not a subclass of .*\. value: (.*)", message):
        message = f"expected other keys and values than {match[1]:.60} ..."
    elif match := re.search("Environment variable '(.*?)' not found", message):
        message = f"the environment variable {match[1]} is not set. Set it, or write a path."
    message = message.replace("Value '$VALUE' of type '$VALUE_TYPE'", "a value in it")
    return (f"{keys[0]}: " if keys and keys[0] else "") + message


def _places() -> dict[Any, str]:
    """{key: group.key}, for a key outside its group."""
    groups = [group for group in fields(Config) if is_dataclass(group.type)]
    return {key.name: f"{group.name}.{key.name}" for group in groups for key in fields(cast(Any, group.type))}
