"""Writes the data sets of the digit-scene world, in the formats of the original's data sets."""

import io
import json
import logging
import math
import random
from pathlib import Path

from PIL import Image

from minigpt4.tiny.data_v2 import V2_SCENES, V2_TEST_SCENES, write_v2
from minigpt4.tiny.text import ask_all, caption, description
from minigpt4.tiny.world import Scene, render, sample_scene

STAGE1_SCENES, STAGE1_VAL_SCENES, SHARDS = 3000, 300, 8  # a shard for each worker of each process
STAGE2_SCENES, STAGE2_VAL_SCENES = 1000, 100
BENCHMARK_SCENES = 500

logger = logging.getLogger(__name__)


def write_all(out: Path, seed: int, scale: float = 1.0) -> None:
    """Writes `stage1/`, `stage1_val/`, `stage2/`, `stage2_val/`, `benchmark/` and `v2/` under `out`.

    The same seed gives the same files; `scale` shrinks the number of scenes, for tests.
    """

    def scenes(name: str, split: str, count: int) -> list[Scene]:
        rng = random.Random(f"{seed}/{name}")
        return [sample_scene(rng, split) for _ in range(max(1, round(count * scale)))]

    write_stage1(out / "stage1", scenes("stage1", "train", STAGE1_SCENES))
    write_stage1(out / "stage1_val", scenes("stage1_val", "val", STAGE1_VAL_SCENES))
    write_stage2(out / "stage2", scenes("stage2", "train", STAGE2_SCENES), seed)
    write_stage2(out / "stage2_val", scenes("stage2_val", "val", STAGE2_VAL_SCENES), seed)
    write_benchmark(out / "benchmark", scenes("benchmark", "test", BENCHMARK_SCENES), seed)
    v2 = scenes("v2", "train", V2_SCENES), scenes("v2_test", "test", V2_TEST_SCENES)
    write_v2(out / "v2", *v2, seed, lambda scene: _jpeg(render(scene)))
    logger.info("Wrote stage1, stage1_val, stage2, stage2_val, benchmark and v2 to %s", out)


def write_stage1(folder: Path, scenes: list[Scene]) -> None:
    """webdataset shards of KEY.jpg + KEY.json {"caption"}, like those of LAION and CC-SBU."""
    from webdataset import ShardWriter

    folder.mkdir(parents=True, exist_ok=True)
    # a fixed mtime and owner: the same seed gives the same bytes
    owner = {"mtime": 0, "user": "minigpt4", "group": "minigpt4"}
    with ShardWriter(str(folder / "%05d.tar"), maxcount=math.ceil(len(scenes) / SHARDS), verbose=0, **owner) as shards:
        for index, scene in enumerate(scenes):
            label = json.dumps({"caption": caption(scene.facts)}).encode()
            shards.write({"__key__": f"{index:06d}", "jpg": _jpeg(render(scene)), "json": label})


def write_stage2(folder: Path, scenes: list[Scene], seed: int) -> None:
    """`image/ID.jpg` and `filter_cap.json`, like cc_sbu_align, plus the optional key "instruction".

    Each scene has one detailed description, without "instruction", and one question of every type.
    """
    rng = random.Random(f"{seed}/stage2 questions")
    annotations = []
    for index, scene in enumerate(scenes):
        _write_image(folder, index, scene)
        annotations.append({"image_id": str(index), "caption": description(scene.facts)})
        for asked in ask_all(rng, scene.facts):
            annotations.append({"image_id": str(index), "caption": asked.answer, "instruction": asked.question})
    _write_json(folder / "filter_cap.json", {"annotations": annotations})


def write_benchmark(folder: Path, scenes: list[Scene], seed: int) -> None:
    """`image/ID.jpg` and `benchmark.json`: one question of every type about each scene."""
    rng = random.Random(f"{seed}/benchmark questions")
    records = []
    for index, scene in enumerate(scenes):
        _write_image(folder, index, scene)
        records += [{"image": f"{index}.jpg", **vars(asked)} for asked in ask_all(rng, scene.facts)]
    _write_json(folder / "benchmark.json", records)


def _write_image(folder: Path, index: int, scene: Scene) -> None:
    path = folder / "image" / f"{index}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_jpeg(render(scene)))


def _jpeg(image: Image.Image) -> bytes:
    """JPEG of so high a quality, colours at full resolution, that the vision tower sees what it was trained on."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
