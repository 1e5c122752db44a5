"""Training data of tests, and the batches of mixtures of it."""

import io
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from minigpt4.common.registry import registry
from minigpt4.config.schema import BuildInfo, Config, DatasetConfig, ProcessorConfig, ProcessorsConfig, RunConfig
from minigpt4.datasets import streams
from minigpt4.datasets.mixture import TrainBatches

NOISE = np.random.default_rng(0).integers(0, 255, (40, 36, 3), dtype=np.uint8)  # each crop of it is another


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE ^ np.uint8(value)).save(file, "JPEG")
    return file.getvalue()


def dataset(name: str, storage: Path):
    images = ProcessorConfig("blip2_image_train", image_size=8)  # crops at random
    text = ProcessorConfig("blip_caption")
    config = DatasetConfig(
        build_info=BuildInfo(str(storage)),
        vis_processor=ProcessorsConfig(images, images),
        text_processor=ProcessorsConfig(text, text),
    )
    return registry.get_builder_class(name)(name, config).build("train")


def batches(
    folder: Path, names=("laion", "cc_sbu_align"), state=None, rank=0, ranks=1, storage=None, lay_out=None, **run
) -> TrainBatches:
    """Of a mixture 1 : 2, for one rank of several; of conversations, unless they are laid out."""
    settings = {"batch_size_train": 3, "num_workers": 0, "seed": 5} | run
    ratios = {"laion": 1.0, "cc_sbu": 1.0, "cc_sbu_align": 2.0}
    config = Config({}, {name: DatasetConfig(sample_ratio=ratios[name]) for name in names}, run=RunConfig(**settings))
    places = {"cc_sbu_align": folder, "laion": storage or folder / "shards"}
    with patch.multiple(streams, rank=lambda: rank, world_size=lambda: ranks):
        datasets = {name: dataset(name, places.get(name, folder / "shards")) for name in names}
        found = TrainBatches(datasets, config, lay_out)
    if state:
        found.load_state_dict(state)
    return found


def captions(batch: dict) -> list[str]:
    return [turn.answer for own in batch["conversation"] for turn in own.turns]


def drawn(found: TrainBatches, number: int) -> list[tuple[list[str], float]]:
    taken = [next(found) for _ in range(number)]
    assert all({"conversation", "image_id"} <= batch.keys() for batch in taken)
    pixels = [torch.stack([p for own in batch["conversation"] for p in own.pictures]) for batch in taken]
    return [(captions(batch), shown.double().sum().item()) for batch, shown in zip(taken, pixels, strict=True)]
