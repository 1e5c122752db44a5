"""A model and data so small that a run takes a moment; importable by processes that a test starts."""

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed import TCPStore
from torch.utils.data import Dataset

from minigpt4.common.distributed import distributed
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, DatasetConfig, RunConfig
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.runner_base import RunnerBase
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from tests.waiting import LIMIT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.runners.toy"])  # imports once; a child of it starts at once


class Numbers(Dataset):
    """Samples {image [8], label, image_id}: a function of the index."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(8, generator=generator)
        return {"image": image, "label": image.argmax(), "image_id": f"number {index}"}


class Pictures(Dataset):
    """Random pictures with short captions, for a model that sees."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        picture = torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(index))
        caption = Conversation([Turn([picture], f"a dog {index}")], kind="caption")
        return {"conversation": caption, "image_id": f"picture {index}"}


class Toy(MiniGPT4):
    """Frozen, trained and frozen layers, with a dropout that needs random numbers."""

    vocabulary = 8  # type: ignore[assignment]

    def __init__(self, pause: float = 0.0):
        nn.Module.__init__(self)  # none of its parts
        torch.manual_seed(0)
        self.tower = nn.Linear(8, 16).requires_grad_(False)
        self.projection = nn.Linear(16, 16)
        self.head = nn.Linear(16, 8).requires_grad_(False)
        self.pause = pause

    def forward(self, samples: dict) -> dict:
        time.sleep(self.pause)
        tokens = F.dropout(self.tower(samples["image"]), 0.2, self.training)
        loss = F.cross_entropy(self.head(self.projection(tokens)), samples["label"])
        return {"loss": loss, "tokens": torch.tensor(len(samples["label"]))}


class Poisoned(Toy):
    """Gives no number as loss, or as gradient, at some steps."""

    def __init__(self, bad_steps: set[int], where: str = "loss"):
        super().__init__()
        self.bad_steps, self.where, self.calls = bad_steps, where, 0
        self.ids: list[list[str]] = []

    def forward(self, samples: dict) -> dict:
        output = super().forward(samples)
        self.calls += 1
        if self.calls in self.bad_steps:
            self.ids.append(samples["image_id"])
            if self.where == "loss":
                output["loss"] = output["loss"] * math.nan
            elif self.where == "infinite loss":  # whose gradients are numbers
                output["loss"] = output["loss"] + math.inf
            else:
                output["loss"].register_hook(lambda gradient: gradient * math.inf)
        return output


def toy_runner(folder: Path, pause: float = 0.0, model: Toy | None = None, valid: bool = False, **run) -> RunnerBase:
    """A runner of 4 epochs of 8 steps."""
    settings = {"batch_size_train": 4, "num_workers": 0, "output_dir": str(folder), "amp": False, "init_lr": 1e-2}
    settings |= {"max_epoch": 4, "iters_per_epoch": 8, "log_freq": 1, "device": "cpu"} | run
    if valid:
        settings["valid_splits"] = ["val"]
    config = Config(datasets={"numbers": DatasetConfig()}, run=RunConfig(**settings))
    runner_class = registry.get_runner_class(config.run.runner)
    runner_class.check(config)
    datasets = {"train": {"numbers": Numbers(50)}, "val": {"numbers": Numbers(7)}}
    return runner_class(config, ImageTextPretrainTask(config), model or Toy(pause), datasets)


def on_ranks(processes: int, function: Callable[..., None], *args) -> None:
    """Calls a function on so many processes that have joined. One that fails ends them all, and its output is shown."""
    # the ranks meet at a store that is there already, so its port can't be taken by another process meanwhile
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"rank{rank}" for rank in range(processes)]
        ranks = [
            CONTEXT.Process(target=_on_rank, args=(rank, processes, store.port, output, function, args))
            for rank, output in enumerate(outputs)
        ]
        for process in ranks:
            process.start()
        left = {process.sentinel: process for process in ranks}
        end = time.monotonic() + LIMIT
        while left and not any(process.exitcode for process in ranks):
            ended = wait(left, end - time.monotonic())
            if not ended:
                break
            for sentinel in ended:
                left.pop(sentinel).join()
        for process in left.values():  # they wait for the one that failed
            process.kill()
            process.join()
        codes = [process.exitcode for process in ranks]
        texts = "\n".join(f"rank {rank}:\n{output.read_text()[-3000:]}" for rank, output in enumerate(outputs))
    assert not any(codes), f"the ranks ended with {codes}\n{texts}"


def _on_rank(
    rank: int, processes: int, port: int, output: Path, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with distributed(torch.device("cpu")):
        function(*args)
