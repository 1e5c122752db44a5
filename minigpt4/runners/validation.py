"""What an epoch is judged by: the loss of the validation splits, and a score of the evaluation datasets."""

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import torch
from torch.utils.data import IterableDataset

from minigpt4.common.distributed import all_reduce_sum, world_size
from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.common.registry import registry
from minigpt4.common.signals import StopSignals
from minigpt4.config.schema import Config
from minigpt4.datasets.loading import Batch, Prepare, SkipCounter, build_valid_loader, to_device
from minigpt4.runners.strategies.strategy import Strategy
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask


class Stopped(Exception):
    """A rank got a signal; all ranks raise this together."""


class Validation:
    """Measures a strategy's model on the splits that `run.valid_splits` names, and by `run.metric`."""

    def __init__(
        self,
        config: Config,
        task: ImageTextPretrainTask,
        strategy: Strategy,
        datasets: dict[str, Any],
        signals: StopSignals,
        prepare: Prepare | None = None,
    ):
        """`datasets` maps a split to {name: dataset}; `prepare` makes of a sample what the model takes.

        Raises:
            UserError: a sharded model needs all ranks for each sample, and one would have none.
        """
        run, self.signals = config.run, signals
        self.config, self.run, self.task, self.strategy, self.device = config, run, task, strategy, strategy.device
        self.loaders = {
            name: build_valid_loader(dataset, run.batch_size_eval, min(run.num_workers, 1), prepare)
            for split in run.valid_splits
            for name, dataset in datasets[split].items()
        }
        for name, dataset in ((n, d) for split in run.valid_splits for n, d in datasets[split].items()):
            if strategy.sharded and not isinstance(dataset, IterableDataset) and len(dataset) < world_size():
                raise UserError(
                    f"datasets.{name}: {len(dataset)} validation samples, and with run.strategy={run.strategy} each "
                    f"of {world_size()} processes needs one. Add some, or set run.valid_splits=[]."
                )

    @staticmethod
    def check(config: Config) -> None:
        """Refuses a metric that can't be taken, before anything is loaded.

        Raises:
            UserError: the config asks for one.
        """
        run = config.run
        if not run.metric:
            return
        if not config.evaluation_datasets:
            raise UserError("run.metric: evaluation_datasets names none to take it on. Name one, or set it to null.")
        if run.strategy == "fsdp" or run.strategy == "deepspeed" and run.zero_stage == 3:
            raise UserError("run.metric: a sharded model can't generate. Set run.strategy=ddp, or run.metric=null.")
        if run.cache_features:
            raise UserError(
                "run.metric: it is taken on pictures, which run.cache_features leaves out. Set one to null."
            )
        for name, conditions in registry.get_task_class("vqa")(config).build_eval_datasets().items():
            known = {"overall", *conditions["trained"].question_types}
            if run.metric not in known:
                raise UserError(
                    f"run.metric: '{run.metric}' is not a question type of evaluation_datasets.{name}."
                    + did_you_mean(run.metric, known)
                )

    def measure(self) -> dict[str, float]:
        """`val_loss` and the metric, those that the config asks for. All ranks must call it.

        Raises:
            Stopped: a signal came; the metric, once begun, is taken to its end.
        """
        self.strategy.wrapped.eval()
        measures = {"val_loss": self.loss()} if self.loaders else {}
        if self.run.metric:
            self._agree(False)
            measures[self.run.metric] = self._score(self.run.metric)
        return measures

    def _agree(self, more: bool) -> bool:
        """Whether any rank has more to do."""
        wishes = torch.tensor([float(more), float(self.signals.received)], device=self.device)
        any_more, stopping = all_reduce_sum(wishes).tolist()
        if stopping:
            raise Stopped
        return any_more > 0

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss over the label tokens of all validation splits and ranks."""
        total = torch.zeros(2, device=self.device, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        for name, loader in self.loaders.items():
            skips = SkipCounter(name, self.run.max_skip_rate)
            for batch, counts in self._in_step(filter(skips.usable, loader)):
                with self.strategy.autocast():
                    output = self.task.valid_step(self.strategy.model, to_device(batch, self.device))
                tokens = output["tokens"].to(total) * counts
                total += torch.stack([output["loss"].to(total) * tokens, tokens])
        all_reduce_sum(total)
        return (total[0] / total[1].clamp(min=1)).item()

    def _in_step(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Batches, and whether they count: where the model is sharded all ranks get as many, the last one repeated.

        All ranks ask for as many, so that they stop together.
        """
        last = None
        for batch in chain(batches, repeat(None)):
            if not self._agree(more=batch is not None):
                return
            if batch is None and not self.strategy.sharded:
                continue
            last = last if batch is None else batch
            if last is None:
                raise UserError("run.valid_splits: a process found no sample that can be used. Mend them, or add some.")
            yield last, batch is not None

    def _score(self, metric: str) -> float:
        """The mean of a metric over `evaluation_datasets`; what controls take away is for evaluation alone."""
        task = registry.get_task_class("vqa")(self.config)
        datasets = {name: {"trained": own["trained"]} for name, own in task.build_eval_datasets().items()}
        results = task.evaluate(self.strategy.model, datasets)
        return sum(result["trained"][metric] for result in results.values()) / len(results)
