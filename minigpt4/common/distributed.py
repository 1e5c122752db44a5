"""Where this process runs: device, rank, seed, and what ranks exchange. Never reads the config."""

import importlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from minigpt4.common.errors import UserError

T = TypeVar("T")


def pick_device(name: str) -> torch.device:
    """Resolves `auto`, `cpu`, `cuda`, `cuda:N`, `mps`, `npu`, ...; under torchrun each local rank gets its own.

    Raises:
        UserError: the device is unknown or not there, or its package is missing.
    """
    if name.partition(":")[0] == "npu":
        try:
            importlib.import_module("torch_npu")  # which makes torch know the device
        except ImportError as error:
            raise UserError(
                f"run.device: '{name}' needs torch_npu. Install the one for your torch: pip install torch-npu"
            ) from error
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        name = accelerator.type if accelerator else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"run.device: '{name}' is not a device. Set run.device=auto, cpu, cuda, cuda:N, mps or npu."
        ) from None
    if device.type == "cpu":
        return device
    if accelerator is None or accelerator.type != device.type:
        raise UserError(f"run.device: '{name}' is not available on this machine. Set run.device=auto.")
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
    # all ranks refuse what one of them lacks: only rank 0 shows errors
    needed = max(index + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if needed > torch.accelerator.device_count():
        raise UserError(
            f"run.device: {name} needs {needed} devices, this machine has {torch.accelerator.device_count()}. "
            "Start fewer processes (torchrun --nproc-per-node)."
        )
    return torch.device(device.type, index)


@contextmanager
def distributed(device: torch.device) -> Iterator[None]:
    """Joins torchrun's process group for the duration of a run; does nothing for a single plain process."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group(backend=None if device.type != "cpu" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sums a tensor over the ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_gather(items: list[T]) -> list[T]:
    """Joins the lists of all ranks, in the order of ranks."""
    if not dist.is_initialized():
        return items
    gathered: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]
