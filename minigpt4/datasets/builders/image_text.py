"""Builders: one short class for each dataset name, saying what kind of files it is."""

from functools import partial
from typing import Any

from torch.utils.data import Dataset

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import DatasetConfig
from minigpt4.datasets.formats.align import CCSBUAlignDataset
from minigpt4.datasets.formats.instruction import InstructionDataset
from minigpt4.datasets.formats.shards import ShardedCaptionDataset


class DatasetBuilder:
    """Builds the splits of one dataset from its config block."""

    dataset_class: Any

    def __init__(self, name: str, config: DatasetConfig):
        self.name, self.config = name, config

    def build(self, split: str, exact: bool = False) -> Dataset:
        """Builds `train` with the training processors, `val` with those of evaluation.

        Args:
            exact: show pictures of `train` as evaluation does too: its processor, decoded at full size.

        Raises:
            UserError: its files are missing.
        """
        key, mode = {"train": ("storage", "train"), "val": ("valid_storage", "eval")}[split]
        storage = getattr(self.config.build_info, key)
        if not storage:
            raise UserError(f"datasets.{self.name}.build_info.{key}: not set. Set it to where the {split} split lies.")
        return self.reader(split)(
            key=f"datasets.{self.name}.build_info.{key}",
            storage=storage,
            info=self.config.build_info,
            vis_processor=getattr(self.config.vis_processor, "eval" if exact else mode).build(),
            text_processor=getattr(self.config.text_processor, mode).build(),
            reduced=split == "train" and not exact,
        )

    def reader(self, split: str) -> Any:
        """What makes the dataset of a split."""
        return self.dataset_class


class FormatBuilder(DatasetBuilder):
    """Builds a data set that is a YAML file alone, which names a format."""

    def reader(self, split: str) -> Any:
        reader = registry.get_format_class(self.config.format)
        return partial(reader, instructions=self.config.instructions, split=split)


def build_dataset(name: str, config: DatasetConfig, split: str, exact: bool = False) -> Dataset:
    """Builds a split of a data set, by the builder of its name or by its format; see `DatasetBuilder.build`."""
    builder = FormatBuilder if config.format else registry.get_builder_class(name)
    return builder(name, config).build(split, exact)


@registry.register_builder("laion", "cc_sbu")
class ShardsBuilder(DatasetBuilder):
    dataset_class = ShardedCaptionDataset


@registry.register_builder("instruction", "minigpt4_instruction", "llava_instruction")
class InstructionBuilder(DatasetBuilder):
    dataset_class = InstructionDataset


@registry.register_builder("cc_sbu_align")
class CCSBUAlignBuilder(DatasetBuilder):
    dataset_class = CCSBUAlignDataset
