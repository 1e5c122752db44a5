"""The training data of one rank: endless batches of a mixture of datasets, each a function of seed and position.

So a run that was cut off continues with the very batches it would have had, whatever the workers had read ahead.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from minigpt4.config.schema import Config
from minigpt4.datasets.formats.shards import ShardedCaptionDataset
from minigpt4.datasets.loading import SKIPPED, Batch, Prepare, worker_init
from minigpt4.datasets.streams import POSITION, MapBatches, MapStream, ShardBatches, ShardStream


class TrainBatches:
    """An endless iterator over this rank's batches. All ranks draw from the same dataset at each step.

    One set of `run.num_workers` worker processes reads all map-style datasets; each dataset of shards has its own set.

    Args:
        datasets: by name, map-style ones and `ShardedCaptionDataset`s.
        prepare: makes of each sample what the model learns from, see `LayOut`.
        pin_memory: put batches where a device copies them from while it computes.

    Attributes:
        length: batches once through all data; None if there are shards, which nobody has counted.

    Raises:
        UserError: there is not enough data for a batch on each rank, or for each worker.
    """

    def __init__(
        self, datasets: Mapping[str, Any], config: Config, prepare: Prepare | None = None, pin_memory: bool = False
    ):
        run = config.run
        self.step, self.num_workers, self.pin_memory = 0, run.num_workers, pin_memory
        self._draw = partial(_draw, run.seed, {name: config.datasets[name].sample_ratio for name in datasets})
        self.streams: dict[str, MapStream | ShardStream] = {}
        for name, dataset in datasets.items():
            kind = ShardStream if isinstance(dataset, ShardedCaptionDataset) else MapStream
            batch_size = config.datasets[name].batch_size or run.batch_size_train
            self.streams[name] = kind(name, dataset, batch_size, run, prepare)
        lengths = [stream.length for stream in self.streams.values()]
        self.length = None if None in lengths else sum(filter(None, lengths))
        self._batches: dict[str, Iterator[Batch]] = {}  # of each stream, once the workers run

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._batches:  # not before: what is read first depends on where to continue
            self._start_workers()
        name = self._draw(self.step)
        self.step += 1
        while True:
            batch = next(self._batches[name])
            if self.streams[name].usable(batch):
                return batch

    def _start_workers(self) -> None:
        maps = {name: stream for name, stream in self.streams.items() if isinstance(stream, MapStream)}
        if maps:
            shared = _SharedWorkers(maps, map(self._draw, count(self.step)), self._load)
            self._batches = {name: shared.batches(name) for name in maps}
        for name, stream in self.streams.items():
            if isinstance(stream, ShardStream):
                self._batches[name] = self._load(ShardBatches(stream))

    def _load(self, batches: Dataset, order: Iterable[Any] | None = None) -> Iterator[Batch]:
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            worker_init_fn=worker_init,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else it would draw from the run's own
        )
        return iter(loader)

    def close(self) -> None:
        self._batches = {}

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from, in numbers and strings."""
        return {"step": self.step, "streams": {name: stream.state() for name, stream in self.streams.items()}}

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continues where the state of each rank was taken, before the first batch is drawn.

        On another number of processes map-style data continues with what its pass has left, shards after those that all
        workers had done with; a warning says so.
        """
        self.step = states[0]["step"]
        for name, stream in self.streams.items():
            stream.resume([state["streams"][name] for state in states if name in state["streams"]])


def _draw(seed: int, ratios: dict[str, float], step: int) -> str:
    """The dataset of a step, drawn in proportion to the ratios. It is the same on all ranks."""
    return random.Random(f"{seed} mixture {step}").choices(list(ratios), weights=list(ratios.values()))[0]


class _SharedWorkers:
    """The workers that make the batches of all map-style datasets, in the order in which a mixture draws them.

    Args:
        names: of the datasets that the mixture draws, map-style or not.
        load: starts workers that make batches in a given order.
    """

    def __init__(self, streams: dict[str, MapStream], names: Iterator[str], load: Callable[..., Iterator[Batch]]):
        self._waiting = {name: deque[Batch]() for name in streams}
        self._replacements = deque[str]()
        to_come = {name: stream.to_come() for name, stream in streams.items()}
        self._made = load(MapBatches(streams), _requests(to_come, names, self._replacements))

    def batches(self, name: str) -> Iterator[Batch]:
        """The batches of one dataset; those of others that the workers make before wait until they are asked for."""
        while True:
            while not self._waiting[name]:
                batch = next(self._made)
                of, _ = batch[POSITION]
                self._waiting[of].append(batch)
                if batch.keys() <= {POSITION, SKIPPED}:  # the mixture will need another one in its place
                    self._replacements.append(of)
            yield self._waiting[name].popleft()


# not a method: through a cycle of references the garbage collector would end the workers, and it may delete their
# queues before they are asked to stop
def _requests(
    to_come: dict[str, Iterator[tuple[dict[str, int], list[int]]]], names: Iterator[str], replacements: deque[str]
) -> Iterator[tuple[str, dict[str, int], list[int]]]:
    """(dataset, position after it, indices) of each batch that the workers are to make."""
    while True:
        name = replacements.popleft() if replacements else next(names)
        if name in to_come:
            yield name, *next(to_come[name])
