"""From datasets to batches: collation, endless loaders, and a mixture that all ranks draw alike."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset

from minigpt4.common.dist_utils import rank, world_size
from minigpt4.common.errors import UserError

Batch = dict[str, Any]


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Stacks tensors of one shape, lists everything else; a key that no sample sets is left out."""
    batch: Batch = {}
    for key in dict.fromkeys(key for sample in samples for key in sample):
        values: list[Any] = [sample.get(key) for sample in samples]
        shapes = {value.shape if isinstance(value, torch.Tensor) else None for value in values}
        if len(shapes) == 1 and None not in shapes:
            batch[key] = torch.stack(values)
        elif any(value is not None for value in values):
            batch[key] = values
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Moves a batch's tensors."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def build_loader(dataset: Dataset, batch_size: int, num_workers: int, training: bool, seed: int) -> DataLoader:
    """A loader of this rank's share. Training shuffles and drops the incomplete last batch.

    Raises:
        UserError: the share does not fill one training batch.
    """
    sampler: DistributedSampler | None = None
    if not isinstance(dataset, IterableDataset) and not training:
        dataset = Subset(dataset, range(rank(), len(dataset), world_size()))  # type: ignore[arg-type]
    elif not isinstance(dataset, IterableDataset):
        sampler = DistributedSampler(dataset, world_size(), rank(), seed=seed)  # type: ignore[arg-type]
        if len(sampler) < batch_size:
            raise UserError(
                f"run.batch_size_train: {batch_size} is more than the {len(sampler)} samples that each of "
                f"{world_size()} processes gets. Use a smaller batch or more data."
            )
    generator = torch.Generator().manual_seed(seed + rank())  # seeds the workers' own random numbers
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=training,
        generator=generator,
        persistent_workers=num_workers > 0,
    )


def forever(loader: DataLoader) -> Iterator[Batch]:
    """Repeats a loader, shuffled anew each time."""
    epoch = 0
    while True:
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def mixture(loaders: Sequence[DataLoader], ratios: Sequence[float], seed: int) -> Iterator[Batch]:
    """Draws each batch from one loader, chosen in proportion to the ratios.

    The choice depends on the seed alone: ranks share it, so all draw the same dataset at each step.
    """
    streams = [forever(loader) for loader in loaders]
    choices = random.Random(seed)
    while True:
        yield next(choices.choices(streams, weights=ratios)[0])


class TrainBatches:
    """SHIM until the data branch lands."""

    def __init__(self, datasets, config):
        run = config.run
        self.loaders = [
            build_loader(d, config.datasets[n].batch_size or run.batch_size_train, run.num_workers, True, run.seed)
            for n, d in datasets.items()
        ]
        self.stream = mixture(self.loaders, [config.datasets[n].sample_ratio for n in datasets], run.seed)
        self.drawn = 0
        self.length = (
            None
            if any(isinstance(loader.dataset, IterableDataset) for loader in self.loaders)
            else sum(map(len, self.loaders))
        )

    def __iter__(self):
        return self

    def __next__(self):
        self.drawn += 1
        return next(self.stream)

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        for _ in range(state["drawn"]):
            next(self)
