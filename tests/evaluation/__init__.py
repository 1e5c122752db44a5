"""What the tests of benchmarks share: the recorded data, and a way to look through all numbers of an expectation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.config.schema import EvaluationDatasetConfig
from minigpt4.evaluation.benchmark import Benchmark, load_benchmark

DATA = Path(__file__).parents[1] / "fixtures" / "evaluation"
VARIANTS = DATA / "variants"
WORDS = {"benchmark", "scorer", "computed_by", "code", "rule", "per_domain_note", "stderr"}  # about the numbers


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line]


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def load(kind: str, path: Path | str, **settings: Any) -> Benchmark:
    return load_benchmark(kind, EvaluationDatasetConfig(eval_file_path=str(path), **settings))


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of all that is not a group; of what is only said about the numbers none."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if entries is None:
        yield path, node
        return
    for key, value in entries:
        if key not in WORDS:
            yield from leaves(value, (*path, str(key)))


def same(ours: Any, theirs: Any) -> bool:
    """Equal; numbers to 1e-6."""
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (ours, theirs)]
    return abs(ours - theirs) <= 1e-6 if all(numbers) else ours == theirs and type(ours) is type(theirs)


def differences(ours: Any, expected: Any) -> list[str]:
    """Where two trees differ, in each value of the expected one."""
    found = []
    own = dict(leaves(ours))
    for path, value in leaves(expected):
        if path not in own or not same(own[path], value):
            found.append(f"{'/'.join(path)}: {own.get(path, 'missing')}, expected {value}")
    return found
