"""The benchmark that docs/extend.md shows is one file."""

import json
import re
from pathlib import Path

from minigpt4.common.registry import registry
from tests.evaluation import load
from tests.evaluation.evaluations import config_of, evaluate, predictions, write_questions

ROOT = Path(__file__).parents[2]


def test_a_benchmark_is_one_file(parity_model, parity_config, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "extend.md").read_text().partition("## A benchmark")[2]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    registry.names("benchmark")  # all that come along are there
    monkeypatch.setattr(registry, "table", registry.table | {"benchmark": dict(registry.table["benchmark"])})
    exec(compile(code, "my_signs.py", "exec"), {"__name__": "my_signs"})
    write_questions(tmp_path)
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([{"id": i, "file": f"{i}.png", "question": "Says?", "word": "Stop"} for i in range(2)]))
    benchmark = load("my_signs", file, img_path=str(tmp_path))
    assert benchmark.score({"0": " stop ", "1": "go"}).scores == {"accuracy": 50.0}
    config = config_of(parity_config, tmp_path, tmp_path / "out")
    config.evaluation_datasets = {"my_signs": config.evaluation_datasets["x"]}
    evaluate(parity_model, config)
    assert [line["prompt"] for line in predictions(tmp_path / "out", "my_signs")] == ["[vqa] Says?"] * 2
