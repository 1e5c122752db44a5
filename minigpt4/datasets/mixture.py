"""The training data of one rank: endless batches of a mixture of datasets, each a function of seed and position.

So a run that was cut off goes on with the very batches it would have had, whatever the workers had read ahead.
"""

import logging
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from minigpt4.common.distributed import rank, world_size
from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config
from minigpt4.datasets.formats.shards import Position, ShardedCaptionDataset
from minigpt4.datasets.loading import Batch, Prepare, SkipCounter, Skipped, UsableSamples, collate, use, worker_init

logger = logging.getLogger(__name__)

_POSITION = "_position"  # a batch's key: (worker, where its stream goes on)
_MOST_WAITING = 100  # reasons that a worker keeps before it reports them


@contextmanager
def seeded(seed: str) -> Iterator[None]:
    """Random numbers that depend on `seed` alone; those of the process go on afterwards as if nothing had been."""
    state, torch_state = random.getstate(), torch.get_rng_state()
    random.seed(seed)
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed would seed all devices, slowly
    try:
        yield
    finally:
        random.setstate(state)
        torch.set_rng_state(torch_state)


class TrainBatches:
    """An endless iterator over this rank's batches. All ranks draw from the same dataset at each step.

    Args:
        datasets: by name, map-style ones and `ShardedCaptionDataset`s.
        check: makes of each sample what the model learns from, see `LayOut`.
        pin_memory: put batches where a device copies them from while it computes.

    Attributes:
        length: batches once through all data; None if there are shards, which nobody has counted.

    Raises:
        UserError: there is not enough data for a batch on each rank, or for each worker.
    """

    def __init__(
        self, datasets: Mapping[str, Any], config: Config, check: Prepare | None = None, pin_memory: bool = False
    ):
        run = config.run
        self.step, self.seed = 0, run.seed
        self.ratios = {name: config.datasets[name].sample_ratio for name in datasets}
        self.streams: dict[str, _Stream] = {}
        for name, dataset in datasets.items():
            kind = _ShardStream if isinstance(dataset, ShardedCaptionDataset) else _MapStream
            batch_size = config.datasets[name].batch_size or run.batch_size_train
            self.streams[name] = kind(name, dataset, batch_size, run, check, pin_memory)
        lengths = [stream.length for stream in self.streams.values()]
        self.length = None if None in lengths else sum(filter(None, lengths))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        choice = random.Random(f"{self.seed} mixture {self.step}")
        name = choice.choices(list(self.ratios), weights=list(self.ratios.values()))[0]
        self.step += 1
        return next(self.streams[name])

    def close(self) -> None:
        """Ends the workers."""
        for stream in self.streams.values():
            stream._batches = None

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from, in numbers and strings."""
        return {"step": self.step, "streams": {name: stream.state() for name, stream in self.streams.items()}}

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Goes on where the state of each rank was taken, before the first batch is drawn.

        On another number of processes map-style data goes on with what its pass has left, shards after those that all
        workers had done with; a warning says so.
        """
        self.step = states[0]["step"]
        for name, stream in self.streams.items():
            stream.resume([state["streams"][name] for state in states if name in state["streams"]])


class _Stream:
    """Batches of one dataset. Subclasses say how its pass over the data is shared by ranks and workers."""

    length: int | None = None

    def __init__(self, name: str, dataset: Any, batch_size: int, run: Any, check: Prepare | None, pin_memory: bool):
        self.name, self.dataset, self.batch_size, self.run = name, dataset, batch_size, run
        self.check, self.pin_memory = check, pin_memory
        self.seed = f"{run.seed} {name}"
        self.skips = SkipCounter(name, run.max_skip_rate)
        self.rank, self.ranks = rank(), world_size()
        self.layout = {"processes": self.ranks}
        self._batches: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        if self._batches is None:  # not before: what is drawn first depends on where to go on
            self._batches = iter(self._loader())
        while True:
            batch = next(self._batches)
            self._passed(batch)
            if self.skips.usable(batch):
                return batch

    def _loader(self) -> DataLoader:
        raise NotImplementedError

    def _passed(self, batch: Batch) -> None:
        """Notes where the stream goes on after a batch."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        raise NotImplementedError

    def resume(self, states: list[dict[str, Any]]) -> None:
        """Goes on from the states of all ranks."""
        if states and states[0]["layout"] == self.layout and len(states) == self.ranks:
            self._go_on(states[self.rank])
        elif states:
            where = self._go_on_differently(states)
            are, were = (", ".join(f"{n} {of}" for of, n in x.items()) for x in (self.layout, states[0]["layout"]))
            logger.warning("datasets.%s: %s now, %s before; it goes on from %s", self.name, are, were, where)

    def _go_on(self, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def _go_on_differently(self, states: list[dict[str, Any]]) -> str:
        """Goes on from what another layout of processes and workers had done; returns where that is."""
        raise NotImplementedError

    def _make_loader(self, dataset: Dataset, **how: Any) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.run.num_workers,
            worker_init_fn=worker_init,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else it would draw from the run's own
            **how,
        )


class _MapStream(_Stream):
    """Passes over a map-style dataset, shuffled anew each time, an equal part to each rank.

    A pass is the shuffled order from `base` on, which is 0 but for the pass that another layout had begun.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.layout["samples in a batch"] = self.batch_size
        self.pass_, self.base, self.drawn = 0, 0, 0  # drawn: batches of this pass
        self.length = self._pass_length(0)
        if not self.length:
            raise UserError(
                f"run.batch_size_train: {self.batch_size} is more than the {len(self.dataset) // self.ranks} samples "
                f"that each of {self.ranks} processes gets of {self.name}. Use a smaller batch or more data."
            )

    def _pass_length(self, base: int) -> int:
        return (len(self.dataset) - base) // self.ranks // self.batch_size

    def _loader(self) -> DataLoader:
        samples = _SeededSamples(UsableSamples(self.dataset, self.check), self.seed)
        return self._make_loader(samples, batch_sampler=_Indices(self), collate_fn=collate)

    def _passed(self, batch: Batch) -> None:
        if self.drawn >= self._pass_length(self.base):
            self.pass_, self.base, self.drawn = self.pass_ + 1, 0, 0
        self.drawn += 1

    def state(self) -> dict[str, Any]:
        return {"layout": self.layout, "pass": self.pass_, "base": self.base, "drawn": self.drawn}

    def _go_on(self, state: dict[str, Any]) -> None:
        self.pass_, self.base, self.drawn = state["pass"], state["base"], state["drawn"]

    def _go_on_differently(self, states: list[dict[str, Any]]) -> str:
        # a rank may have drawn more, in place of batches of which nothing could be used
        last = min(states, key=lambda state: (state["pass"], state["drawn"]))
        self.pass_, self.drawn = last["pass"], 0
        self.base = last["base"] + last["drawn"] * math.prod(last["layout"].values())
        return f"sample {self.base} of pass {self.pass_}"


class _Indices(Sampler):
    """(pass, index) of each sample of each batch to come."""

    def __init__(self, stream: _MapStream):
        # not the stream: a cycle through its loader would leave the workers' end to the garbage collector, which
        # takes their queues away before the word to stop is sent
        self.start, self.size = (stream.pass_, stream.base, stream.drawn), len(stream.dataset)
        self.seed, self.batch_size, self.rank, self.ranks = stream.seed, stream.batch_size, stream.rank, stream.ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        pass_, base, drawn = self.start
        while True:
            order = list(range(self.size))
            random.Random(f"{self.seed} {pass_}").shuffle(order)
            mine = order[base:][self.rank :: self.ranks]
            for i in range(drawn, (self.size - base) // self.ranks // self.batch_size):
                yield [(pass_, index) for index in mine[i * self.batch_size : (i + 1) * self.batch_size]]
            pass_, base, drawn = pass_ + 1, 0, 0


class _SeededSamples(Dataset):
    """Samples by (pass, index), with random numbers of their own."""

    def __init__(self, samples: UsableSamples, seed: str):
        self.samples, self.seed = samples, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        pass_, index = key
        with seeded(f"{self.seed} {pass_} {index}"):
            return self.samples[index]


class _ShardStream(_Stream):
    """Batches of shards; each worker of each rank has shards of its own, and the workers take turns."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.workers = self.layout["workers"] = max(self.run.num_workers, 1)
        self.drawn = 0  # batches, of all workers
        self.positions = [Position()] * self.workers
        readers = self.ranks * self.workers
        if (shards := len(self.dataset.shards)) < readers:
            raise UserError(
                f"run.num_workers: {self.workers} on each of {self.ranks} processes need {readers} shards, and "
                f"{self.name} has {shards}. Set it to {shards // self.ranks}, or make more, smaller shards."
                if shards >= self.ranks
                else f"datasets.{self.name}: {self.ranks} processes need as many shards, and it has {shards}. Make "
                "more, smaller shards, or use fewer processes."
            )

    def _loader(self) -> DataLoader:
        return self._make_loader(_ShardBatches(self), batch_size=None)

    def _passed(self, batch: Batch) -> None:
        worker, position = batch.pop(_POSITION)
        self.positions[worker] = position
        self.drawn += 1

    def state(self) -> dict[str, Any]:
        return {"layout": self.layout, "drawn": self.drawn, "positions": [list(p) for p in self.positions]}

    def _go_on(self, state: dict[str, Any]) -> None:
        self.drawn, self.positions = state["drawn"], [Position(*p) for p in state["positions"]]

    def _go_on_differently(self, states: list[dict[str, Any]]) -> str:
        positions = [Position(*p) for state in states for p in state["positions"]]
        last = min((p.pass_, p.shard) for p in positions)  # each has done with as many, or is a pass ahead
        base = next(p.base for p in positions if (p.pass_, p.shard) == last) + last[1] * len(positions)
        self.positions = [Position(last[0], base)] * self.workers
        return f"shard {base} of pass {last[0]}"


class _ShardBatches(IterableDataset):
    """Batches of one worker, each with the position after it."""

    def __init__(self, stream: _ShardStream):
        self.dataset, self.seed, self.batch_size = stream.dataset, stream.seed, stream.batch_size
        self.rank, self.ranks, self.check = stream.rank, stream.ranks, stream.check
        self.positions, self.drawn = list(stream.positions), stream.drawn

    def __iter__(self) -> Iterator[Batch]:
        workers = len(self.positions)
        info = get_worker_info()
        # the loader asks worker 0 first: it is to be the one whose turn it was
        worker = ((info.id if info else 0) + self.drawn) % workers
        samples: list[Any] = []
        stream = self.rank * workers + worker
        for name, read, position in self.dataset.endless(
            self.positions[worker], stream, self.ranks * workers, self.seed
        ):
            with seeded(f"{self.seed} {stream} {position}"):
                samples.append(use(name, self.check, read))
            skipped = sum(isinstance(sample, Skipped) for sample in samples)
            if len(samples) - skipped == self.batch_size or skipped == _MOST_WAITING:
                yield collate(samples) | {_POSITION: (worker, position)}
                samples = []
