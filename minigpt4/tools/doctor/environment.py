"""What is installed, and what that enables."""

import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config

State = Literal["ok", "warn", "red", "off"]

_OPTIONAL = {  # packages that stand together: extra of pip, what it enables
    ("bitsandbytes",): ("quantization", "4 and 8 bits on GPUs, and LoRA on them"),
    ("fastapi", "uvicorn", "openai"): ("serve", "minigpt4 serve"),
    ("decord", "opencv-python"): ("video", "videos"),
    ("pyarrow",): ("parquet", "Parquet files"),
    ("ijson",): ("data", "prepare-data captions"),
    ("onnx", "onnxruntime", "onnxscript"): ("onnx", "export onnx, and model.vision.name=onnx"),
    ("pycocoevalcap",): ("evaluation", "caption metrics"),
    ("fschat",): ("vicuna", "FastChat's own apply_delta"),
    ("deepspeed",): ("deepspeed", "run.strategy=deepspeed"),
    ("wandb",): ("wandb", "run.wandb_log"),
}
_LITTLE = 1e9  # bytes of a disk


@dataclass(frozen=True)
class Line:
    """A line of the page: found in order, suspicious, wrong (then with what to type), or not there and not needed."""

    state: State
    text: str


def environment(config: Config) -> list[Line]:
    """Python, torch and the device, optional libraries, and room on disks that a run writes to."""
    return [*_core(config), *_optional(), *_disks(config)]


def _core(config: Config) -> Iterable[Line]:
    import torch

    from minigpt4.common.distributed import pick_device

    yield Line("ok", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}")
    found = {name: _version(name) for name in ("torch", "torchvision", "transformers", "timm", "peft")}
    yield Line("ok", ", ".join(f"{name} {own}" for name, own in found.items()))
    try:
        device = pick_device(config.run.device)
    except UserError as error:
        yield Line("red", str(error))
        return
    if device.type == "cpu":
        yield Line("ok", f"device: cpu, {torch.get_num_threads()} threads")
        return
    about = torch.get_device_module(device)
    name = about.get_device_name(device) if hasattr(about, "get_device_name") else device.type
    yield Line("ok", f"device: {device}, {name}")


def _optional() -> Iterable[Line]:
    for packages, (extra, enables) in _OPTIONAL.items():
        found = {name: _version(name) for name in packages}
        if all(found.values()):
            yield Line("ok", f"{', '.join(f'{name} {own}' for name, own in found.items())}: {enables}")
        else:
            lacking = ", ".join(name for name, own in found.items() if not own)
            yield Line("off", f"{lacking}: not installed. For {enables}: pip install 'minigpt4[{extra}]'")
    if npu := _version("torch_npu"):
        yield Line("ok", f"torch_npu {npu}: run.device=npu")
    else:
        yield Line("off", "torch_npu: not installed. For Ascend NPUs: see docs/npu.md")
    if shutil.which("java"):
        yield Line("ok", "java: METEOR, and the tokenizer of caption metrics")
    else:
        yield Line("off", "java: not installed. For METEOR and caption metrics: apt install default-jre-headless")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _disks(config: Config) -> Iterable[Line]:
    from huggingface_hub import constants

    places = {"env.cache_root": config.env.cache_root, "the hub's cache": constants.HF_HUB_CACHE}
    places["run.output_dir"] = config.run.output_dir
    for what, path in places.items():
        folder = Path(path).expanduser().absolute()
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        text = f"{what}: {free / 1e9:.1f} GB free at '{there}'"
        yield Line("ok", text) if free >= _LITTLE else Line("red", f"{text}. Free space there, or set it elsewhere.")
