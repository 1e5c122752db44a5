"""The runner by epochs: loaders, optimizer, schedule, the loop, validation, checkpoints, the log."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from minigpt4.common import dist_utils
from minigpt4.common.checkpoint import save_checkpoint
from minigpt4.common.config import Config, save_config
from minigpt4.common.errors import UserError, make_folder
from minigpt4.common.logger import RunLog, plot_loss
from minigpt4.common.optims import build_optimizer, build_schedule
from minigpt4.common.registry import registry
from minigpt4.datasets.data_utils import Batch, build_loader, mixture
from minigpt4.models.base_model import BaseModel
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask

logger = logging.getLogger(__name__)

BEST = "checkpoint_best"


@registry.register_runner("runner_base")
class RunnerBase:
    """Trains for `run.max_epoch` epochs. Everything is built here, in order; the methods only run it."""

    def __init__(self, config: Config, task: ImageTextPretrainTask, model: BaseModel, datasets: dict[str, Any]):
        """`datasets` maps a split to {name: dataset}. The model is on its device."""
        run = config.run
        self.config, self.run, self.task = config, run, task
        dist_utils.seed_everything(run.seed + dist_utils.rank())  # ranks draw different prompts
        loaders = self._train_loaders(datasets["train"])
        self.valid_loaders = [
            build_loader(dataset, run.batch_size_eval, min(run.num_workers, 1), training=False, seed=run.seed)
            for split in run.valid_splits
            for dataset in datasets[split].values()
        ]
        self.iters_per_epoch = run.iters_per_epoch or epoch_length(loaders)
        self.batches = mixture(loaders, [config.datasets[name].sample_ratio for name in datasets["train"]], run.seed)
        self.model = model
        self.device = model.device
        self.optimizer = build_optimizer(model, run)
        self.schedule = build_schedule(run, self.iters_per_epoch)
        self.wrapped = model
        if dist_utils.world_size() > 1:
            self.wrapped = DistributedDataParallel(model, broadcast_buffers=False)  # type: ignore[assignment]
        self.output_dir = Path(run.output_dir)
        if dist_utils.is_main():
            make_folder("run.output_dir", self.output_dir)
            shutil.rmtree(self.output_dir / BEST, ignore_errors=True)  # an earlier run's
            save_config(config, self.output_dir / "config.yaml")
        self.log = RunLog(self.output_dir)  # last: a run that can't start leaves the earlier one's log

    @staticmethod
    def check(config: Config) -> None:
        """Refuses, before anything is loaded, what this runner can't do.

        Raises:
            UserError: the config asks for it.
        """
        run = config.run
        if run.evaluate:
            raise UserError("run.evaluate: True trains nothing. Use evaluate.py, or set run.evaluate=False.")
        if run.wandb_log:
            logger.warning("run.wandb_log: not supported yet; log.txt and loss.png hold the run's numbers")

    def _train_loaders(self, datasets: dict[str, Any]) -> list[DataLoader]:
        run = self.run
        return [
            build_loader(
                dataset,
                self.config.datasets[name].batch_size or run.batch_size_train,
                run.num_workers,
                training=True,
                seed=run.seed,
            )
            for name, dataset in datasets.items()
        ]

    def train(self) -> None:
        """Runs all epochs. Each ends with validation, a checkpoint, a line in log.txt and a new loss.png."""
        trainable, total = self.model.count_parameters()
        logger.info("training %s of %s parameters for %d epochs", f"{trainable:,}", f"{total:,}", self.run.max_epoch)
        best = float("inf")
        for epoch in range(self.run.max_epoch):
            started = time.perf_counter()
            record = self._train_epoch(epoch)
            if self.valid_loaders:
                record["val_loss"] = self.validate()
            self.log.write(**record, seconds=round(time.perf_counter() - started, 2))
            logger.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.4g}" for k, v in record.items() if "loss" in k))
            if dist_utils.is_main():
                save_checkpoint(self.model, self.output_dir / f"checkpoint_{epoch}")
                if record.get("val_loss", 0.0) < best:
                    best = record.get("val_loss", best)
                    save_checkpoint(self.model, self.output_dir / BEST)
                plot_loss(self.output_dir)
            dist_utils.barrier()

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        """Returns the epoch's record: its last step, learning rate and mean loss over all ranks."""
        self.wrapped.train()
        first = epoch * self.iters_per_epoch
        losses = torch.zeros(self.iters_per_epoch, device=self.device)  # read back rarely: reading waits for the device
        lr, logged = 0.0, 0
        bar = tqdm(range(self.iters_per_epoch), desc=f"epoch {epoch}", disable=not dist_utils.is_main())
        for i in bar:
            lr = self.schedule.lr(first + i)
            losses[i] = self._train_iteration(next(self.batches), lr, update=self._updates(i))
            if (i + 1) % self.run.log_freq == 0 or i + 1 == self.iters_per_epoch:
                loss = self._mean(losses[logged : i + 1])
                bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}")
                self.log.write(step=first + i + 1, train_loss=loss, lr=lr)
                logged = i + 1
        return {"epoch": epoch, "step": first + self.iters_per_epoch, "lr": lr, "epoch_loss": self._mean(losses)}

    def _updates(self, i: int) -> bool:
        # the last, incomplete group of an epoch counts too: no gradient is lost or carried over
        return (i + 1) % self.run.accum_grad_iters == 0 or i + 1 == self.iters_per_epoch

    def _train_iteration(self, batch: Batch, lr: float, update: bool) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.amp):
            loss = self.task.train_step(self.wrapped, to_device(batch, self.device))
        (loss / self.run.accum_grad_iters).backward()
        if update:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            if self.run.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the samples of all validation splits and ranks."""
        self.model.eval()
        total = torch.zeros(2, device=self.device, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        for loader in self.valid_loaders:
            for batch in loader:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.amp):
                    loss = self.task.valid_step(self.model, to_device(batch, self.device))
                count = len(next(iter(batch.values())))
                total += torch.stack([loss.to(total.dtype) * count, torch.full_like(total[0], count)])
        dist_utils.all_reduce_sum(total)
        return (total[0] / total[1].clamp(min=1)).item()

    def _mean(self, losses: Tensor) -> float:
        return (dist_utils.all_reduce_sum(losses.mean()) / dist_utils.world_size()).item()


def epoch_length(loaders: list[DataLoader]) -> int:
    """Batches in one pass over the data.

    Raises:
        UserError: a stream of shards has no end, so `run.iters_per_epoch` must say it.
    """
    if any(isinstance(loader.dataset, IterableDataset) for loader in loaders):
        raise UserError("run.iters_per_epoch: not set, and shards have no length. Set it to the batches of an epoch.")
    return sum(map(len, loaders))


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
