"""Where a benchmark's files are, and their records, with errors that name the file and the line."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.config.schema import EvaluationDatasetConfig


class Row(Mapping[str, Any]):
    """One record of a file. What it lacks is reported with its place."""

    def __init__(self, data: Any, place: str):
        if not isinstance(data, dict):
            raise UserError(f"{place}: expected an object with keys, found {_shown(data)}.")
        self.data, self.place = data, place

    def __getitem__(self, key: str) -> Any:
        if key not in self.data:
            raise UserError(f"{self.place}: has no '{key}', but {', '.join(map(repr, list(self.data)[:10]))}.")
        return self.data[key]

    def __contains__(self, key: object) -> bool:
        return key in self.data

    def get(self, key: str, default: Any = None) -> Any:
        return self.data.get(key, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def require(self, *keys: str) -> None:
        """Refuses a record without one of the keys."""
        for key in keys:
            self[key]

    def text(self, key: str) -> str:
        return self._typed(key, str, "text")

    def id(self, key: str) -> str:
        """A text or a whole number, as text."""
        return str(self._typed(key, (str, int), "text or a whole number"))

    def number(self, key: str) -> float:
        return self._typed(key, (int, float), "a number")

    def numbers(self, key: str, count: int) -> list[float]:
        values = self._typed(key, list, "a list of numbers")
        if len(values) != count or not all(isinstance(value, int | float) for value in values):
            raise UserError(f"{self.place}: '{key}' is {_shown(values)}, expected a list of {count} numbers.")
        return values

    def index(self, key: str, below: int) -> int:
        value = self._typed(key, int, "a whole number")
        if not 0 <= value < below:
            raise UserError(f"{self.place}: '{key}' is {value}, but there are {below} choices, counted from 0.")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of at least one text."""
        values = self._typed(key, list, "a list of texts")
        if not values or not all(isinstance(value, str) for value in values):
            raise UserError(f"{self.place}: '{key}' is {_shown(values)}, expected a list of texts.")
        return values

    def rows(self, key: str) -> "list[Row]":
        return as_rows(f"{self.place}: {key}", self._typed(key, list, "a list"))

    def entries(self) -> "dict[str, Row]":
        """Of an object whose values are records: all of them."""
        return {key: self.row(key) for key in self}

    def row(self, key: str) -> "Row":
        return Row(self[key], f"{self.place}: {key}")

    def _typed(self, key: str, types: Any, words: str) -> Any:
        value = self[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise UserError(f"{self.place}: '{key}' is {_shown(value)}, expected {words}.")
        return value


class Source:
    """The files and the settings of one block of `evaluation_datasets`."""

    def __init__(self, name: str, block: EvaluationDatasetConfig, keys: str):
        self.name, self.block, self._keys = name, block, keys
        self.kind = name  # the benchmark's registered name
        self.files: list[Path] = []  # that were read
        self._split_read = False

    def key(self, key: str) -> str:
        """A key of the block, as an error names it."""
        return self._keys.format(name=self.name, key=key.replace("_", "-") if self._keys.startswith("--") else key)

    @property
    def path(self) -> Path:
        """What `eval_file_path` names.

        Raises:
            UserError: it is not there.
        """
        path = Path(self.block.eval_file_path)
        if not self.block.eval_file_path or not path.exists():
            raise UserError(
                f"{self.key('eval_file_path')}: '{self.block.eval_file_path}' does not exist. Set it to the annotation "
                "file, or to the folder that holds it (`minigpt4 tiny data` writes the tiny ones)."
            )
        return path

    @property
    def folder(self) -> Path:
        """The folder of `eval_file_path`, or that itself."""
        return self.path if self.path.is_dir() else self.path.parent

    def file(self, *names: str) -> Path:
        """The annotation file: `eval_file_path`, or the first of the names that exists in that folder."""
        found = self.optional_file(*names)
        if found is None:
            wanted = " or ".join(names)
            raise UserError(
                f"{self.key('eval_file_path')}: '{self.path}' holds no {wanted}. Set it to a folder that does."
            )
        return found

    def optional_file(self, *names: str) -> Path | None:
        """As `file`; None where the folder holds none of the names."""
        if self.path.is_file():
            return self.path
        return next((self.path / name for name in names if (self.path / name).is_file()), None)

    def split(self, known: Iterable[str]) -> str | None:
        """The block's split, checked; None: it names none.

        Raises:
            UserError: it is not known.
        """
        self._split_read, known, split = True, list(known), self.block.split
        if split is not None and split not in known:
            raise UserError(f"{self.key('split')}: '{split}' is not there.{did_you_mean(split, known)}")
        return split

    def split_files(self, pattern: str, default: str | None = None, under: str = "") -> dict[str, Path]:
        """{split: file} of the split that is asked for.

        Args:
            pattern: the name of a split's file, with * for the split.
            default: what is taken if the block names no split; None: all of them.
            under: a folder that the published files may lie in, below `eval_file_path`.

        Raises:
            UserError: there is no such file, or not of that split.
        """
        path, name = self.path, re.compile(re.escape(pattern).replace(r"\*", "(.+)"))
        path = path / under if (path / under).is_dir() else path
        inside = [path] if path.is_file() else sorted(path.glob(pattern))
        found = {match[1] if (match := name.fullmatch(file.name)) else file.stem: file for file in inside}
        if not found:
            raise UserError(f"{self.key('eval_file_path')}: '{path}' holds no {pattern}. Set it to a folder that does.")
        wanted = self.split(found)
        if wanted is None and default in found:
            wanted = default
        if wanted is None and default is not None and len(found) > 1:
            known = ", ".join(found)
            raise UserError(f"{self.key('split')}: none is set, and '{path}' has several. Set one of {known}.")
        return found if wanted is None else {wanted: found[wanted]}

    def split_file(self, pattern: str, default: str) -> Path:
        """As `split_files`, of one split."""
        return next(iter(self.split_files(pattern, default).values()))

    def template(self, default: str, *fields: str) -> str:
        """The block's prompt, or else the benchmark's own.

        Args:
            default: a template with some of the fields.
            fields: what may stand in braces.

        Raises:
            UserError: the block's prompt holds other braces.
        """
        if (prompt := self.block.prompt) is None:
            return default
        try:
            places = [place for _, *place in Formatter().parse(prompt) if place[0] is not None]
        except ValueError:
            places = [[None]]
        if any(place not in [[name, "", None] for name in fields] for place in places):
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise UserError(f"{self.key('prompt')}: '{prompt}' is not a template. In braces it may hold {known}.")
        return prompt

    def noted(self, file: Path) -> Path:
        """The same file; it is listed among those that the questions are made from."""
        self.files.append(file)
        return file

    def json(self, file: Path) -> Any:
        """A JSON file's content; see `read_json`."""
        return read_json(self.noted(file))

    def rows(self, file: Path) -> list[Row]:
        """The records of a JSON list, or of JSON lines; see `read_rows`."""
        return read_rows(self.noted(file))

    def listed(self, file: Path, key: str) -> list[Row]:
        """The records of the list under a key of a JSON object."""
        return Row(self.json(file), str(file)).rows(key)

    def picture(self, name: str) -> Path:
        return Path(self.block.img_path, name)

    def check_split_read(self) -> None:
        """Refuses a split of a benchmark that has none."""
        if self.block.split is not None and not self._split_read:
            raise UserError(f"{self.key('split')}: '{self.block.split}', but {self.kind} has no splits. Remove it.")


def read_json(file: Path) -> Any:
    """A JSON file's content.

    Raises:
        UserError: it can't be read, or is not JSON.
    """
    return _loads(str(file), read_text(file))


def read_rows(file: Path) -> list[Row]:
    """The records of a JSON list, or of JSON lines.

    Raises:
        UserError: the file is neither, or a record no object; it names the line.
    """
    text = read_text(file)
    if text.lstrip().startswith("["):
        return as_rows(file, _loads(str(file), text))
    lines = enumerate(text.split("\n"), 1)  # not splitlines: JSON's strings may hold other line breaks
    return [Row(_loads(place := f"{file}: line {n}", line), place) for n, line in lines if line.strip()]


def as_rows(place: Path | str, records: list[Any]) -> list[Row]:
    """A list's entries, numbered from 1."""
    return [Row(record, f"{place}: record {n}") for n, record in enumerate(records, 1)]


def _shown(value: Any) -> str:
    """The beginning of a value as JSON, where quotes distinguish a text from a number."""
    return json.dumps(value, ensure_ascii=False, default=str)[:40]


def read_text(file: Path) -> str:
    """A file's content, in UTF-8.

    Raises:
        UserError: it can't be read.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}. Write it again in that encoding.") from None
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}). Name a file that can.") from None


def _loads(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}. Name a file of the published format.") from None
