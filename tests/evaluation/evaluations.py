"""Evaluations of the golden model on four questions about two pictures."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from minigpt4.config.schema import (
    Config,
    EvaluationDatasetConfig,
    ModelConfig,
    ProcessorConfig,
    ProcessorsConfig,
    RunConfig,
)
from minigpt4.evaluation.evaluating import Evaluation, Table
from minigpt4.inference.loading import engine_for
from minigpt4.models.minigpt4 import MiniGPT4
from tests.conftest import SIZE

RECORDS = [
    {"image": f"{i % 2}.png", "question": f"What is {text}?", "answer": "a", "question_type": "ab"[i // 2]}
    for i, text in enumerate(["this", "that", "here", "there"])
]


def write_questions(folder: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    for i in range(2):
        Image.new("RGB", (20, 16), (150 * i, 0, 90)).save(folder / f"{i}.png")
    file = folder / "questions.json"
    file.write_text(json.dumps(records))
    return file


def config_of(model: ModelConfig, folder: Path, out: Path, limit: int | None = None, batch: int = 3, **run) -> Config:
    images = ProcessorConfig("blip2_image_eval", image_size=SIZE)
    config = Config(model=model, run=RunConfig(num_workers=0, device="cpu", output_dir=str(out), **run))
    config.preprocess.vis_processor = ProcessorsConfig(images, images)
    config.evaluation_datasets["x"] = EvaluationDatasetConfig(
        str(folder / "questions.json"), str(folder), batch_size=batch, max_new_tokens=6, limit=limit
    )
    return config


def evaluate(model: MiniGPT4, config: Config, **how) -> Table:
    return Evaluation.of(config, **how).run(engine_for(model, config))


def predictions(out: Path, name: str = "x") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name / "predictions.jsonl").read_text().splitlines()]


def answers(out: Path, name: str = "x") -> list[str]:
    return [line["answer"] for line in predictions(out, name)]
