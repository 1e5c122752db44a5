"""Evaluation by questions with one right answer: exact match, by question type, with controls."""

import json
import logging
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from minigpt4.common.distributed import all_gather, is_main, rank, world_size
from minigpt4.common.errors import UserError, make_folder, writing
from minigpt4.common.registry import registry
from minigpt4.config.finding import CONFIG
from minigpt4.config.loading import save_config
from minigpt4.config.schema import EvaluationDatasetConfig
from minigpt4.conversation.conversation import Conversation, Turn, spaced
from minigpt4.datasets.formats.vqa import VQADataset
from minigpt4.datasets.loading import collate
from minigpt4.evaluation.metrics.exact import normalize
from minigpt4.inference.engine import Engine
from minigpt4.inference.requests import Request, raise_first
from minigpt4.models.base_model import BaseModel
from minigpt4.models.loading import load_prompter
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.projection import build_projection
from minigpt4.processors import build_processor
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask

logger = logging.getLogger(__name__)

Predictions = list[dict[str, Any]]


def score(predictions: Predictions) -> dict[str, float]:
    """Accuracy by question type, and `overall` over all questions."""
    right: dict[str, list[bool]] = defaultdict(list)
    for p in predictions:
        hit = normalize(p["prediction"]) == normalize(p["answer"])
        right[p["question_type"]].append(hit)
        right["overall"].append(hit)
    return {name: sum(hits) / len(hits) for name, hits in sorted(right.items())}


@registry.register_task("vqa")
class VQATask(ImageTextPretrainTask):
    """Asks every question of `evaluation_datasets`, greedily, in the model's own conversation format."""

    def build_eval_datasets(self) -> dict[str, dict[str, VQADataset]]:
        """Builds {dataset: {condition: questions}} for the condition "trained" and each of `run.controls`."""
        if not self.config.evaluation_datasets:
            raise UserError("evaluation_datasets: none is named. Name one with eval_file_path and img_path.")
        processor = build_processor(self.config.preprocess.vis_processor.eval)
        return {
            name: {
                condition: VQADataset(name, block.eval_file_path, block.img_path, processor, condition)
                for condition in ("trained", *self.config.run.controls)
            }
            for name, block in self.config.evaluation_datasets.items()
        }

    def evaluate(self, model: BaseModel, datasets: dict[str, dict[str, VQADataset]]) -> dict[str, Any]:
        """Returns {dataset: {condition: {question type: accuracy}}}, logs it as tables and writes it.

        A control repeats the evaluation with sight taken away: what it still gets right was guessed. Written to the
        output folder: `evaluation.json`, and each condition's answers in `<dataset>_<condition>.jsonl`.
        """
        assert isinstance(model, MiniGPT4)
        processor = build_processor(self.config.preprocess.vis_processor.eval)
        engine = Engine(model, load_prompter(self.config.model), processor, self.config.model.compile)
        key, folder = self.config.run.results
        make_folder(key, folder)
        if is_main():
            with writing(key, folder):
                save_config(self.config, folder / CONFIG)
        results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in datasets}
        for name, conditions in datasets.items():
            for condition, dataset in conditions.items():
                projection = self._untrained(model) if condition == "untrained_projection" else model.projection
                with model.projecting_with(projection):
                    predictions = self._predict(engine, self.config.evaluation_datasets[name], dataset, condition)
                results[name][condition] = score(predictions)
                if is_main():
                    lines = [json.dumps(p, ensure_ascii=False) + "\n" for p in predictions]
                    with writing(key, folder):
                        (folder / f"{name}_{condition}.jsonl").write_text("".join(lines), encoding="utf-8")
            logger.info("%s, %d questions\n%s", name, len(conditions["trained"]), table(results[name]))
        if is_main():
            with writing(key, folder):
                (folder / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
        return results

    def _untrained(self, model: MiniGPT4) -> nn.Module:
        """The same projection at each evaluation, and on each rank."""
        torch.manual_seed(0)
        return build_projection(self.config.model.projection.name, model.vision.width, model.llm).to(model.device)

    def _predict(
        self, engine: Engine, block: EvaluationDatasetConfig, dataset: VQADataset, condition: str
    ) -> Predictions:
        share = Subset(dataset, range(rank(), len(dataset), world_size()))
        loader = DataLoader(share, block.batch_size, collate_fn=collate, num_workers=self.config.run.num_workers)
        predictions: Predictions = []
        for batch in tqdm(loader, desc=condition, disable=not is_main()):
            asked = zip(batch["image"], batch["question"], strict=True)
            requests = [
                Request(Conversation([Turn(spaced([image, question]))]), block.max_new_tokens)
                for image, question in asked
            ]
            answers = engine.answer(requests)
            raise_first(answers)
            keys = ("image_id", "question", "answer", "question_type")
            rows = zip(*(batch[key] for key in keys), answers, strict=True)
            predictions += [dict(zip((*keys, "prediction"), row, strict=True)) for row in rows]
        return all_gather(predictions)


def table(scores: dict[str, dict[str, float]]) -> str:
    """Draws {condition: {type: accuracy}} as a Markdown table, one row a question type."""
    columns = list(scores)
    rows = [["accuracy (%)", *columns]]
    for kind in sorted(scores[columns[0]], key=lambda k: (k == "overall", k)):
        rows.append([kind, *(f"{100 * scores[column][kind]:.1f}" for column in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
