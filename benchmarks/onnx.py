"""An image through ViT-g and the Q-Former on a CPU: torch, ONNX Runtime, and ONNX Runtime in int8, of random weights.

python -m benchmarks.onnx [--vit-depth 39] [--folder DIR]

The default has 4 of the 39 blocks; the whole tower needs 14 GB
of memory, and 11 GB of disk in --folder. torch is the product's own way on a CPU: fp32, oneDNN. In turn; as JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.chat import medians, seconds
from benchmarks.common import in_turn, machine
from minigpt4.config.schema import Config, VisionConfig
from minigpt4.models.cpu_linear import use_onednn
from minigpt4.models.onnx_export import difference, export_onnx, quantize_int8
from minigpt4.models.random_weights import random_vision
from minigpt4.models.vision import VisionPart, build_vision

CPU = torch.device("cpu")


def configured(vit_depth: int) -> Config:
    config = Config()
    config.model.vit.depth, config.model.vit_precision, config.run.device = vit_depth, "fp32", "cpu"
    return config


def export(vit_depth: int, file: Path) -> None:
    export_onnx(random_vision(configured(vit_depth), CPU), None, file)


def alone(work: Callable[..., None], *arguments: Any) -> float:
    """Runs it in a process of its own, whose memory is free afterwards; returns its seconds."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return seconds(lambda: pool.submit(work, *arguments).result(), CPU)[0]


def onnx_tower(vit_depth: int, file: Path) -> VisionPart:
    config = configured(vit_depth)
    config.model.vision = VisionConfig(name="onnx", model=str(file))
    vision = build_vision(config)
    vision.load(config, {"model.vision.model": file})
    return vision


@torch.inference_mode()
def measure(vit_depth: int, folder: Path, batch: int, repeats: int) -> dict[str, Any]:
    file, small = folder / "tower.onnx", folder / "tower.int8.onnx"
    print("Exporting", file=sys.stderr)
    result: dict[str, Any] = {"export_s": round(alone(export, vit_depth, file), 1)}
    print("Quantizing", file=sys.stderr)
    result["quantize_s"] = round(alone(quantize_int8, file, small), 1)
    for name in ("tower.onnx", "tower.int8.onnx"):
        size = sum(path.stat().st_size for path in (folder / name, folder / f"{name}.data") if path.is_file())
        result[f"{name}_gb"] = round(size / 1e9, 3)
    vision = random_vision(configured(vit_depth), CPU)
    use_onednn(vision)
    towers = {"torch": vision, "onnx": onnx_tower(vit_depth, file), "onnx_int8": onnx_tower(vit_depth, small)}
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seen: dict[str, Tensor] = {}

    def see(name: str) -> None:
        seen[name] = towers[name](images)

    ways = {name: partial(seconds, partial(see, name), CPU) for name in towers}
    print("Measuring", file=sys.stderr)
    times = in_turn(repeats + 1, ways)  # the first warms up
    for name, own in times.items():
        result[f"{name}_s_per_image"] = round(medians(own[1:])[0] / batch, 3)
        result[f"{name}_least_s_per_image"] = round(min(wall for wall, _ in own[1:]) / batch, 3)
    for name in ("onnx", "onnx_int8"):
        result[name] = difference(seen["torch"], seen[name])
        ratios = [a[0] / b[0] for a, b in zip(times["torch"][1:], times[name][1:], strict=True)]
        result[f"torch_over_{name}"] = round(statistics.median(ratios), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit-depth", type=int, default=4, help="39 for the whole ViT-g")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where the files are while it measures (default: the system's)")
    options = parser.parse_args()
    result = {"machine": machine(), "threads": torch.get_num_threads(), "load_before": os.getloadavg()[0]}
    result |= {"vit_depth": options.vit_depth, "batch": options.batch}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result |= measure(options.vit_depth, Path(folder), options.batch, options.repeats)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
