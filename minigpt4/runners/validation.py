"""What an epoch is judged by: the loss of the validation splits, and a score of the evaluation datasets."""

from collections.abc import Iterator
from itertools import chain, repeat
from threading import Event
from typing import Any

import torch
from torch.utils.data import IterableDataset

from minigpt4.common.distributed import all_reduce_sum, world_size
from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.config.schema import Config
from minigpt4.datasets.loading import Batch, Prepare, SkipCounter, build_valid_loader, to_device
from minigpt4.evaluation.evaluating import Evaluation
from minigpt4.evaluation.tables import flat
from minigpt4.inference.loading import engine_for
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.strategies.strategy import Strategy
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask


class Stopped(Exception):
    """A rank got a signal; all ranks raise this together."""


class Validation:
    """Measures a strategy's model on the splits that `run.valid_splits` names, and by `run.metric`.

    Args:
        datasets: maps a split to {name: dataset}.
        signalled: set once this rank is to stop.
        prepare: makes of a sample what the model takes.

    Raises:
        UserError: a sharded model needs all ranks for each sample, and one would have none.
    """

    def __init__(
        self,
        config: Config,
        task: ImageTextPretrainTask,
        strategy: Strategy,
        datasets: dict[str, Any],
        signalled: Event,
        prepare: Prepare | None = None,
    ):
        run, self.signalled = config.run, signalled
        self.config, self.run, self.task, self.strategy, self.device = config, run, task, strategy, strategy.device
        self.loaders = {}
        for name, dataset in ((n, d) for split in run.valid_splits for n, d in datasets[split].items()):
            self.loaders[name] = build_valid_loader(dataset, run.batch_size_eval, min(run.num_workers, 1), prepare)
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
        if run.shards_weights:
            raise UserError("run.metric: a sharded model can't generate. Set run.strategy=ddp, or run.metric=null.")
        if run.cache_features:
            raise UserError(
                "run.metric: it is taken on pictures, which run.cache_features leaves out. Set one to null."
            )
        if run.metric not in (known := Metric(config).known()):
            raise UserError(
                f"run.metric: '{run.metric}' is not a score of evaluation_datasets." + did_you_mean(run.metric, known)
            )

    def measure(self) -> dict[str, float]:
        """`val_loss` and the metric, those that the config asks for. All ranks must call it.

        Raises:
            Stopped: a signal came; the metric, once started, is taken to its end.
        """
        self.strategy.wrapped.eval()
        measures = {"val_loss": self.loss()} if self.loaders else {}
        if self.run.metric:
            self._agree(False)
            measures |= Metric(self.config).measure(self.strategy.model)
        return measures

    def _agree(self, more: bool) -> bool:
        """Whether any rank has more to do."""
        wishes = torch.tensor([float(more), float(self.signalled.is_set())], device=self.device)
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
                raise UserError("run.valid_splits: a process found no sample that can be used. Fix them, or add some.")
            yield last, batch is not None


class Metric:
    """`run.metric`, taken on `evaluation_datasets` as `minigpt4 evaluate` does; controls are for that alone.

    It is `<benchmark>.<score>`; or a score's name alone, for its mean over all benchmarks, which have it then, all as
    percentages or all as fractions.
    """

    def __init__(self, config: Config):
        self.config = config
        self.evaluation = Evaluation.of(config, overwrite=True)
        self.evaluation.conditions, self.evaluation.weights = ("trained",), "those in training"

    def known(self) -> set[str]:
        """The names that `run.metric` may have: those of the scores that wrong answers would get."""
        scores = {b.name: b.score({q.id: "" for q in b.questions}) for b in self.evaluation.benchmarks}
        names = {name: set(flat(own.scores)) for name, own in scores.items()}
        # a fraction and a percentage of one name have no mean
        common = set.intersection(*names.values()) if len({own.scale for own in scores.values()}) == 1 else set()
        return common.union(*({f"{name}.{own}" for own in names[name]} for name in names))

    def measure(self, model: MiniGPT4) -> dict[str, float]:
        """{name: value} of the metric and of each benchmark's main score."""
        results = {name: own["trained"] for name, own in self.evaluation.run(engine_for(model, self.config)).items()}
        scores = {name: flat(own.scores) for name, own in results.items()}
        metric = str(self.config.run.metric)
        own = [found[metric] for found in scores.values() if metric in found]
        named = {f"{name}.{key}": value for name, found in scores.items() for key, value in found.items()}
        mains = {f"{name}.{found.main}": found.value for name, found in results.items()}
        return mains | {metric: named[metric] if metric in named else sum(own) / len(own)}
