"""Annotation files and what they hold, checked: an error names the key, the value and what is expected there."""

import json
from pathlib import Path
from typing import Any

from minigpt4.common.errors import UserError

_WORDS = {str: "text", int: "a whole number", list: "a list", dict: "an object with keys"}


def wrong(what: str) -> UserError:
    """The error of an annotation that can't be used."""
    return UserError(f"{what}. Correct or remove this annotation.")


def checked(value: Any, name: str, *kinds: type) -> Any:
    """A value that is of one of the kinds; a truth value is not a number.

    Raises:
        UserError: it is missing or of another kind. `name` is what it is called there, such as "key 'bbox'".
    """
    expected = " or ".join(_WORDS[kind] for kind in kinds)
    if value is None:
        raise wrong(f"{name} is missing; expected {expected}")
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise wrong(f"{name} is {shown(value)}; expected {expected}")
    return value


def value_of(row: Any, key: str, *kinds: type) -> Any:
    """What an annotation holds below a key. Raises as `checked`."""
    return checked(checked(row, "it", dict).get(key), f"key '{key}'", *kinds)


def text_of(row: Any, key: str) -> str:
    """The text below a key. Raises as `checked`."""
    return value_of(row, key, str)


def texts_of(row: Any, key: str) -> list[str]:
    """The texts below a key: at least one. Raises as `checked`."""
    texts = value_of(row, key, list)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise wrong(f"key '{key}' is {shown(texts)}; expected a list of texts")
    return texts


def shown(value: Any) -> str:
    """The beginning of a value as JSON, where quotes distinguish a text from a number."""
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def listed(key: str, file: Path) -> list[Any]:
    """The entries of a JSON file: a list, or what is below "annotations" or "data".

    Raises:
        UserError: it is missing, or holds no such list.
    """
    found = load_json(key, file)
    for name in ("annotations", "data"):
        found = found[name] if isinstance(found, dict) and name in found else found
    if not isinstance(found, list):
        raise UserError(
            f"{key}: '{file}' holds no list of annotations. Use the annotation file published by LAVIS or by the data "
            "set."
        )
    return found


def load_json(key: str, file: Path) -> Any:
    """Raises `UserError` where it is missing or not JSON."""
    if not file.is_file():
        raise UserError(
            f"{key}: '{file}' is not a file. Set it to the annotations (docs/minigptv2.md says where to get them; "
            "`minigpt4 tiny data` writes the tiny ones)."
        )
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: '{file}' is not JSON: {error}. Download it again.") from None
