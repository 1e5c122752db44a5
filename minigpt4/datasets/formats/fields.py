"""The picture and the caption among a shard's sample's fields, wherever its writer put them.

A key is FIELD, what follows the first dot of a file's name, or FIELD:PATH, an entry of JSON: PATH is the keys and list
positions that lead there, joined by dots.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from minigpt4.common.errors import UserError

_NAMED = 10  # fields that an error names


def lower_fields(keys: Sequence[str]) -> list[str]:
    """Keys with their fields in lower case, as webdataset gives them."""
    parts = (key.partition(":") for key in keys)
    return [field.lower() + colon + path for field, colon, path in parts]


def picture(sample: Mapping[str, bytes], keys: Sequence[str]) -> bytes:
    """The first of the keys that the sample has.

    Raises:
        UserError: it has none of them.
    """
    for key in keys:
        if key in sample:
            return sample[key]
    raise _without("picture", "image_keys", keys, sample)


def caption(sample: Mapping[str, bytes], keys: Sequence[str]) -> str:
    """The first of the keys under which there is text other than space.

    Raises:
        UserError: there is none, or a field on the way is not UTF-8 or not JSON.
    """
    for key in keys:
        field, _, path = key.partition(":")
        if field not in sample:
            continue
        text = _entry(_json(field, sample[field]), path) if path or _is_json(field) else _text(field, sample[field])
        if isinstance(text, str) and text.strip():
            return text
    raise _without("caption", "caption_keys", keys, sample)


def _entry(value: Any, path: str) -> Any:
    for step in path.split(".") if path else ():
        if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def _is_json(field: str) -> bool:
    return field.split(".")[-1] == "json"


def _json(field: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{field} is not JSON: {error}") from None


def _text(field: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{field} is not UTF-8: {error}") from None


def _without(what: str, option: str, keys: Sequence[str], sample: Mapping[str, bytes]) -> UserError:
    """Names what the sample holds, as keys that can be set."""
    found = list[str]()
    for field in sample:
        if not field.startswith("__"):  # not webdataset's own
            texts = list[str]()
            if what == "caption" and _is_json(field):
                with suppress(UserError):
                    texts += _paths(_json(field, sample[field]))
            found += [f"{field}:{path}" for path in texts] or [field]
    holds = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
    return UserError(f"no {what}: it holds {holds or 'nothing'}; set build_info.{option}, now [{', '.join(keys)}]")


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """Where texts are in JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        own = f"{path}.{key}" if path else str(key)
        yield from [own] if isinstance(entry, str) else _paths(entry, own)
