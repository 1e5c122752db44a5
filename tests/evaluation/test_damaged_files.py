"""Whatever is wrong with an annotation or a file of predictions is reported as a user's error, in one line."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.errors import UserError
from minigpt4.evaluation.predictions import read_predictions
from tests.evaluation import DATA, VARIANTS, load

FOLDERS = sorted((file.parent.name, file.parent) for file in DATA.glob("*/predictions.jsonl"))
FOLDERS += [(kind, VARIANTS / name) for kind, name in (("gqa", "gqa"), ("iconvqa", "iconqa"), ("mme", "mme"))]
WRONG: list[Any] = [None, 3, -1, 2.5, True, "", [], [1], {}, {"a": 1}, "zzz"]
TESTS_PER_FOLDER = 12


def damage(node: Any, chance: random.Random) -> Any:
    """Takes something out of JSON, or puts something else in its place."""
    places: list[tuple[Any, Any]] = []
    nodes = [node]
    while nodes:
        within = nodes.pop()
        entries = within.items() if isinstance(within, dict) else enumerate(within) if isinstance(within, list) else ()
        for key, value in entries:
            places.append((within, key))
            nodes.append(value)
    within, key = chance.choice(places)
    if isinstance(within, dict) and chance.random() < 0.4:
        del within[key]
    else:
        within[key] = chance.choice(WRONG)
    return node


def damaged(text: str, chance: random.Random) -> str:
    try:
        return json.dumps(damage(json.loads(text), chance))
    except ValueError:
        pass
    try:
        rows = damage([json.loads(line) for line in text.splitlines() if line], chance)
        return "\n".join(map(json.dumps, rows))
    except ValueError:  # a table
        place = chance.randrange(len(text))
        return text[:place] + chance.choice(["", "\t", "\n", "x"]) + text[place + chance.randrange(5) :]


@pytest.mark.parametrize(("kind", "folder"), FOLDERS, ids=lambda value: getattr(value, "name", value))
def test_any_damage_is_reported(kind, folder, tmp_path):
    refused = 0
    for seed in range(TESTS_PER_FOLDER):
        chance, copy = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(folder, copy)
        files = [
            file for file in sorted(copy.rglob("*.*")) if file.name != "expected.json" and "minigpt4_" not in file.name
        ]
        file: Path = chance.choice(files)
        file.write_text(damaged(file.read_text(), chance))
        try:
            benchmark = load(kind, copy)
            predictions = read_predictions(copy / "predictions.jsonl", benchmark)
            if kind != "coco_caption":  # whose tokenizer is slow
                json.dumps(benchmark.score(predictions).json())
        except UserError as error:
            assert "\n" not in str(error) and (str(copy) in str(error) or kind in str(error)), error
            refused += 1
    assert refused
