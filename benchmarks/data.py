"""How fast training data comes: python benchmarks/data.py [--full] [--workers 0 1 2]

Shards of JPEGs made on the spot, from the file to normalised batches of 224 pixels:
ours against plain webdataset + Pillow + torchvision on 256-pixel pictures, by workers; and, of 1024-pixel pictures on
one core, JPEGs read at reduced size, as training does (see `load` of the image processors), against the same at full
size: from file to tensor, and in the whole path; and what a mixture of many small datasets costs to start.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import webdataset as wds
from common import in_turn, machine, parse, ratios, row
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

from minigpt4.common.registry import registry
from minigpt4.config.schema import BuildInfo, Config, DatasetConfig, ProcessorConfig, ProcessorsConfig, RunConfig
from minigpt4.datasets.mixture import TrainBatches
from minigpt4.processors.image import CLIP_MEAN, CLIP_STD, Blip2ImageTrainProcessor

BATCH = 32


def write_shards(folder: Path, size: int, samples: int, shards: int) -> None:
    """Pictures with about the detail of photographs: 150 KB for 1024 pixels."""
    random = np.random.default_rng(0)
    for shard in tqdm(range(shards), f"writing pictures of {size} pixels"):
        with wds.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for i in range(samples // shards):
                small = Image.fromarray(random.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8))
                picture = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
                picture = (picture + random.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(picture).save(file, "JPEG", quality=75)
                caption = json.dumps({"caption": f"picture {i}"})
                tar.write({"__key__": f"{shard:03d}{i:05d}", "jpg": file.getvalue(), "json": caption})


def block_of(folder: Path) -> DatasetConfig:
    images, text = ProcessorConfig("blip2_image_train", image_size=224), ProcessorConfig("blip_caption")
    return DatasetConfig(
        build_info=BuildInfo(str(folder)),
        vis_processor=ProcessorsConfig(images, images),
        text_processor=ProcessorsConfig(text, text),
    )


def ours(folder: Path, workers: int, reduced: bool = True) -> Iterator[Any]:
    block = block_of(folder)
    dataset: Any = registry.get_builder_class("cc_sbu")("cc_sbu", block).build("train")
    if not reduced:
        dataset.reduced = False
    run = RunConfig(batch_size_train=BATCH, num_workers=workers)
    return TrainBatches({"cc_sbu": dataset}, Config(datasets={"cc_sbu": block}, run=run))


def plain(folder: Path, workers: int) -> Iterator[Any]:
    """What a user would write with webdataset's README and torchvision."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    pipeline = wds.DataPipeline(
        wds.ResampledShards(sorted(str(file) for file in folder.glob("*.tar"))),
        wds.tarfile_to_samples(),
        wds.shuffle(1000),
        wds.decode("pilrgb"),
        wds.to_tuple("jpg", "json"),
        wds.map(lambda pair: (transform(pair[0]), pair[1]["caption"])),
    )
    return iter(DataLoader(pipeline, batch_size=BATCH, num_workers=workers))


def images_per_second(batches: Iterator[Any], number: int, workers: int) -> float:
    """By the clock; without workers by the time that this process had of its core."""
    clock = time.perf_counter if workers else time.process_time
    for _ in range(3 * workers + 1):  # what was made ready before the clock started
        next(batches)
    started = clock()
    for _ in range(number):
        next(batches)
    return number * BATCH / (clock() - started)


def by_workers(folder: Path, workers: list[int], rounds: int, batches: int) -> None:
    first: list[float] = []
    for count in workers:
        number = batches * max(count, 1)
        figures = in_turn(
            rounds,
            {
                "ours": lambda w=count, n=number: images_per_second(ours(folder, w), n, w),
                "plain": lambda w=count, n=number: images_per_second(plain(folder, w), n, w),
            },
        )
        print(f"256 pixels, {count} workers")
        print(row("ours", figures["ours"], "images/s"))
        print(row("webdataset + Pillow + torchvision", figures["plain"], "images/s"))
        print(row("ratio", ratios(figures["ours"], figures["plain"]), "x"))
        if count > 1 and first:
            print(row("ours, against 1 worker", ratios(figures["ours"], first), "x"))
        first = figures["ours"] if count == 1 else first


def reduced_and_full(folder: Path, rounds: int) -> None:
    processor = Blip2ImageTrainProcessor()
    files = [sample["jpg"] for sample in wds.WebDataset(str(folder / "00000.tar"), shardshuffle=False)]

    def decoded(reduced: bool) -> float:
        started = time.process_time()
        for file in files:
            processor.load(io.BytesIO(file), reduced)
        return len(files) / (time.process_time() - started)

    ways = {
        "a JPEG to a tensor": {"reduced": lambda: decoded(True), "full": lambda: decoded(False)},
        "the whole path": {
            "reduced": lambda: images_per_second(ours(folder, 0), 4, 0),
            "full": lambda: images_per_second(ours(folder, 0, reduced=False), 4, 0),
        },
    }
    for what, both in ways.items():
        figures = in_turn(rounds, both)
        print(f"1024 pixels, one core, {what}")
        print(row("JPEGs read at reduced size", figures["reduced"], "images/s"))
        print(row("at full size", figures["full"], "images/s"))
        print(row("ratio", ratios(figures["reduced"], figures["full"]), "x"))


def small_datasets(folder: Path, number: int = 22, workers: int = 6) -> None:
    """Starts a mixture of map-style datasets, and looks at the processes once each dataset has given a batch."""
    (folder / "image").mkdir(parents=True)
    for i in range(64):
        Image.new("RGB", (256, 256), (i, i, i)).save(folder / "image" / f"{i}.jpg")
    records = [{"image_id": str(i), "caption": f"picture {i}"} for i in range(64)]
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": records}))
    block = block_of(folder)
    build = registry.get_builder_class("cc_sbu_align")("cc_sbu_align", block).build
    datasets = {f"dataset {i}": build("train") for i in range(number)}
    config = Config(datasets=dict.fromkeys(datasets, block), run=RunConfig(batch_size_train=8, num_workers=workers))
    started = time.perf_counter()
    with closing(TrainBatches(datasets, config)) as batches:
        next(batches)
        first = time.perf_counter() - started
        while {stream.skips.seen > 0 for stream in batches.streams.values()} != {True}:
            next(batches)
        every = time.perf_counter() - started
        tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
        memory = [process.memory_full_info() for process in tree]
    print(f"{number} small map-style datasets, {workers} workers")
    print(row("the first batch", [first], "s"))
    print(row("a batch of each dataset", [every], "s"))
    print(row("processes", [len(tree)], ""))
    print(row("their resident memory (RSS)", [sum(m.rss for m in memory) / 2**20], "MiB"))
    shared = [getattr(m, "pss", m.uss) for m in memory]
    print(row("the same, pages they share counted once", [sum(shared) / 2**20], "MiB"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the training data's path.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=8, help="measured in each round, for each worker")
    parser.add_argument("--pictures", type=int, default=1024, help="of 256 pixels; an eighth of it of 1024")
    args = parse(parser, rounds=5, batches=20, pictures=2048)
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "256", Path(name) / "1024"
        small.mkdir()
        large.mkdir()
        write_shards(small, 256, args.pictures, max([8, *args.workers]))
        write_shards(large, 1024, args.pictures // 8, 8)
        by_workers(small, args.workers, args.rounds, args.batches)
        reduced_and_full(large, args.rounds)
        small_datasets(Path(name) / "align")


if __name__ == "__main__":
    main()
