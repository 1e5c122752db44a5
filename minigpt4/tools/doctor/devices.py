"""What a device can do: how much it holds, how fast it reads that, how fast it multiplies."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml

from minigpt4.models.preflight import free_memory


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        on_cpu: whether its memory is that of the process.
        memory: bytes that are free.
        bandwidth: bytes of it that are read in a second.
        flops: operations a second in products of matrices.
        measured: whether the last two are of this machine; else they are those of `devices.yaml`.
        quantizes: whether an LLM in 4 or 8 bits can be used there.
    """

    name: str
    on_cpu: bool
    memory: float
    bandwidth: float
    flops: float
    measured: bool = False
    quantizes: bool = True


def known_devices() -> dict[str, Device]:
    """Those of `devices.yaml`, by the names of `--device`."""
    rows = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {name: Device(on_cpu=False, **row) for name, row in rows.items()}


def this_device(device: torch.device) -> Device:
    """What the device of this machine can do: measured, which takes about a second."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    side, large = (1024, 2**26) if device.type == "cpu" else (8192, 2**29)
    factor, data = torch.rand(side, side, device=device, dtype=dtype), torch.zeros(large, device=device)
    flops = 2 * side**3 / _seconds(lambda: factor @ factor, device)
    bandwidth = data.nbytes / _seconds(data.sum, device)
    name = "this machine's CPU" if device.type == "cpu" else f"this machine's {device}"
    return Device(name, device.type == "cpu", free_memory(device), bandwidth, flops, measured=True)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few calls."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def process_memory() -> float:
    """Bytes of memory that this process has now."""
    return psutil.Process().memory_info().rss
