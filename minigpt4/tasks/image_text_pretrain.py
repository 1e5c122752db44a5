"""The training task: build model and data from the config, compute a batch's loss."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from minigpt4.common.distributed import is_main
from minigpt4.common.errors import Problems, UserError, make_folder, writing
from minigpt4.common.files import replace_file
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.datasets.builders.image_text import build_dataset
from minigpt4.models.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)


@registry.register_task("image_text_pretrain", "vqa")  # the latter in configs of before, which evaluate
class ImageTextPretrainTask:
    """Aligns the model with image-text pairs or instructions. Says what is computed; a runner says how."""

    def __init__(self, config: Config):
        self.config = config

    def build_datasets(self, split: str, exact: bool = False) -> dict[str, Dataset]:
        """Builds one split of every dataset that has it. For `val` those are the ones with a `valid_storage`.

        Args:
            exact: show training's pictures as evaluation does, too.
        """
        config, problems = self.config, Problems()
        datasets: dict[str, Dataset] = {}
        for name, block in config.datasets.items():
            if split == "train" or block.build_info.valid_storage:
                with problems.collect():
                    datasets[name] = build_dataset(name, block, split, exact)
        problems.raise_all()
        if not datasets:
            raise UserError(f"datasets: none has a '{split}' split. Name one, with build_info.valid_storage for val.")
        self._write_down_missing(split, datasets)
        return datasets

    def _write_down_missing(self, split: str, datasets: dict[str, Dataset]) -> None:
        """The picture files that are not there go into a file, one a line: warnings name only the first."""
        missing = {f"{name}\t{file}": None for name, data in datasets.items() for file in getattr(data, "missing", [])}
        if missing and is_main():
            folder = Path(self.config.run.output_dir)
            make_folder("run.output_dir", folder)
            with writing("run.output_dir", folder):
                replace_file(file := folder / f"missing_pictures_{split}.txt", "\n".join([*missing, ""]).encode())
            logger.warning("%d picture files are missing; %s names them all", len(missing), file)

    def build_model(self, towers: bool = True, problems: Problems | None = None) -> MiniGPT4:
        """Loads the model; `problems` found before are reported with its own, and nothing is loaded then."""
        return registry.get_model_class(self.config.model.arch).from_config(self.config, towers, problems)

    def train_step(self, model: nn.Module, samples: dict[str, Any]) -> dict[str, Tensor]:
        """The `loss` of one batch, ready for backward: a mean over so many `tokens`."""
        return model(samples)

    def valid_step(self, model: nn.Module, samples: dict[str, Any]) -> dict[str, Tensor]:
        """The same of a validation split."""
        return self.train_step(model, samples)
