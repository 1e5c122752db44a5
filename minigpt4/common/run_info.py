"""What a run is made with: versions, the git revision, the device. Written beside its results."""

import os
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from minigpt4.common.distributed import world_size

_PACKAGES = ("torch", "torchvision", "transformers", "timm", "peft", "webdataset", "deepspeed", "pillow", "minigpt4")


def run_info(device: torch.device) -> dict[str, Any]:
    """The command and where it was given, the git revision, versions, the number of processes and the device's name."""
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "command": sys.argv,
        "working_directory": os.getcwd(),
        "git": _git_revision(),
        "python": sys.version.split()[0],
        "packages": packages,
        "processes": world_size(),
        "device": str(device) if device.type == "cpu" else torch.get_device_module(device).get_device_name(device),
    }


def _git_revision() -> str | None:
    """The commit of this code, with `-dirty` where files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
