"""What a run reports to its user: console lines, log.txt, loss.png, TensorBoard, wandb. Only rank 0 writes."""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from tqdm import tqdm

from minigpt4.common.distributed import is_main, world_size
from minigpt4.common.errors import writing
from minigpt4.common.files import replace_file
from minigpt4.config.schema import Config

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"


def to_json(record: dict[str, Any]) -> str:
    """One line; what is not a number is null, as JSON has no other word for it."""
    bare = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(bare, allow_nan=False) + "\n"


class RunLog:
    """A run's numbers: `log.txt` in its output folder (one JSON object a line), TensorBoard, and wandb where asked.

    A run that continues from step `resumed` keeps the lines up to it; a new one starts with an empty file.
    Where its epochs have another length than before, by `ratio`, so have the steps of these lines.
    """

    def __init__(self, config: Config, resumed: int = 0, ratio: Fraction = Fraction(1)):
        self.folder = Path(config.run.output_dir)
        self._wandb: Any = None
        if not is_main():
            return
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        self.file = self.folder / LOG_FILE
        lines = self.file.read_text().splitlines(keepends=True) if resumed and self.file.is_file() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        records = [r | {"step": int(r["step"] * ratio)} for r in records]
        # cut off while it writes, a run leaves all lines
        replace_file(self.file, "".join(to_json(r) for r in records if r["step"] <= resumed).encode())
        threading.excepthook = partial(_but_tensorboards, threading.excepthook)
        self._board: Any = SummaryWriter(str(self.folder / "tensorboard"), purge_step=resumed + 1)
        if config.run.wandb_log:
            import wandb  # `RunnerBase.check` has looked for it

            plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
            name = config.run.job_name or self.folder.name
            self._wandb = wandb.init(project="minigpt4", name=name, dir=str(self.folder), config=plain)

    def write(self, **record: Any) -> None:
        """Writes a record; `step` says where it belongs.

        Raises:
            UserError: log.txt can't be written. TensorBoard is given up with a warning.
        """
        if not is_main():
            return
        with writing("run.output_dir", self.file), self.file.open("a") as file:
            file.write(to_json(record))
        numbers = {k: v for k, v in record.items() if isinstance(v, float) and k != "step"}
        with self._giving_up_the_board():
            for name, value in numbers.items() if self._board else ():
                self._board.add_scalar(name, value, record["step"])
            if self._board:
                self._board.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])

    def close(self) -> None:
        if is_main():
            with self._giving_up_the_board():
                if self._board:
                    self._board.close()
            if self._wandb is not None:
                self._wandb.finish()

    @contextmanager
    def _giving_up_the_board(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("tensorboard/ can't be written (%s); the run continues without", error.strerror)
            self._board = None


def _but_tensorboards(hook: Callable[[threading.ExceptHookArgs], Any], failed: threading.ExceptHookArgs) -> None:
    """Shows a thread's error, but for the writer of TensorBoard's, which raises it at the next record too."""
    if not type(failed.thread).__module__.startswith("tensorboard."):
        hook(failed)


class Meter:
    """Throughput since the last reading: samples and label tokens of all ranks a second, share of waiting for data."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.samples = self.tokens = 0
        self.waited, self.started = 0.0, time.perf_counter()

    def read(self, device: torch.device) -> dict[str, float]:
        """Returns the numbers and resets them. `memory_gb` is the most that this rank's accelerator held."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        numbers = {
            "samples_per_s": world_size() * self.samples / seconds,
            "tokens_per_s": self.tokens / seconds,
            "data_wait": self.waited / seconds,
        }
        if device.type != "cpu" and hasattr(torch.get_device_module(device), "max_memory_allocated"):
            numbers["memory_gb"] = torch.get_device_module(device).max_memory_allocated(device) / 1e9
        self.reset()
        return numbers


def progress_text(loss: float, lr: float, eta: float, numbers: dict[str, float]) -> dict[str, str]:
    """What the progress bar shows; `eta` are the seconds that are left, `numbers` those that `Meter` read."""
    shown = {"loss": f"{loss:.3f}", "lr": f"{lr:.1e}", "samples/s": f"{numbers['samples_per_s']:.1f}"}
    shown |= {"tokens/s": f"{numbers['tokens_per_s']:.0f}", "data": f"{numbers['data_wait']:.0%}"}
    shown["eta"] = tqdm.format_interval(eta)
    if "memory_gb" in numbers:
        shown["memory"] = f"{numbers['memory_gb']:.1f}GB"
    return shown


def parts_table(model: nn.Module) -> str:
    """A Markdown table of a model's parts: parameters, how many train, dtypes, bytes."""
    rows = ["| part | parameters | trained | dtype | GB |", "|---|---|---|---|---|"]
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        depth = 2 if name.startswith("vision.") else 1  # a part of parts
        parts.setdefault(".".join(name.split(".")[:depth]), []).append(parameter)
    for name, own in (*parts.items(), ("all", [p for part in parts.values() for p in part])):
        sizes = [getattr(p, "ds_numel", p.numel()) for p in own]  # ZeRO-3 leaves an empty tensor of each
        trained = sum(n for n, p in zip(sizes, own, strict=True) if p.requires_grad)
        dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in own}))
        size = sum(n * p.element_size() for n, p in zip(sizes, own, strict=True)) / 1e9
        rows.append(f"| {name} | {sum(sizes):,} | {trained:,} | {dtypes} | {size:.3f} |")
    return "\n".join(rows)


def plot_loss(folder: Path) -> None:
    """Draws `loss.png` from `log.txt`: training loss by step; validation loss and scores at the end of each epoch.

    Where it can't be written, a warning says so.
    """
    from matplotlib.figure import Figure  # slow to import

    records = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for key, style in (("train_loss", "-"), ("val_loss", "o")):
        points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=key.replace("_", " "))
    axes.grid(alpha=0.3)
    scores = list(dict.fromkeys(key for r in records for key in r if "." in key))  # <benchmark>.<score>
    if scores:
        beside = axes.twinx()
        beside.set_ylabel("score")
        for number, key in enumerate(scores, 2):  # colours of the cycle continue behind those of the losses
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            beside.plot(*zip(*points, strict=True), "s--", label=key, color=f"C{number}")
    figure.legend(loc="outside upper center", ncols=2)
    picture = BytesIO()
    figure.savefig(picture, dpi=120)
    try:
        replace_file(folder / "loss.png", picture.getvalue())
    except OSError as error:
        logger.warning("loss.png can't be written (%s)", error.strerror)
